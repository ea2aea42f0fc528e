# SPDX-License-Identifier: GPL-2.0
# Builds programs that run guests.  Whoever includes this says which ($(programs)) and where they go below BUILD ($(name));
# each is made of the source file of its name, and of what all of them share, from this folder.

BUILD ?= $(abspath ../../build)
top := $(patsubst %/tests/guests/,%,$(dir $(realpath $(lastword $(MAKEFILE_LIST)))))
out := $(BUILD)/$(name)
shared := $(BUILD)/guests/shared

CXXFLAGS ?= -O2 -g
override CXXFLAGS += -std=c++20 -Wall -Wextra -Wpedantic -Werror -pthread
override CPPFLAGS += -I$(top)/tests/guests -I$(top)/userlib -I$(top)/uapi -MMD -MP

common := $(addprefix $(shared)/,guest.o scenario.o vm.o vmx.o)

.PHONY: all
all: $(programs:%=$(out)/%)

$(programs:%=$(out)/%): $(out)/%: $(out)/%.o $(common)
	$(CXX) $(CXXFLAGS) $(LDFLAGS) -o $@ $^

$(out)/%.o: %.cpp | $(out)
	$(CXX) $(CPPFLAGS) $(CXXFLAGS) -c -o $@ $<

$(shared)/%.o: $(top)/tests/guests/%.cpp | $(shared)
	$(CXX) $(CPPFLAGS) $(CXXFLAGS) -c -o $@ $<

$(shared)/%.o: $(top)/tests/guests/%.S | $(shared)
	$(CC) -MMD -MP -c -o $@ $<

$(out) $(shared):
	mkdir -p $@

.PHONY: clean
clean:
	rm -rf $(out) $(shared)

.SECONDARY:
-include $(wildcard $(out)/*.d $(shared)/*.d)
