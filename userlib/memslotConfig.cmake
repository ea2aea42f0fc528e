# SPDX-License-Identifier: MIT
# find_package(memslot) gives the target memslot::memslot.  Installed as
# PREFIX/share/cmake/memslot/memslotConfig.cmake, from where it finds the headers.

get_filename_component(memslot_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)

if(NOT TARGET memslot::memslot)
	add_library(memslot::memslot INTERFACE IMPORTED)
	target_include_directories(memslot::memslot INTERFACE "${memslot_prefix}/include")
	target_compile_features(memslot::memslot INTERFACE cxx_std_20)
endif()

unset(memslot_prefix)
