// SPDX-License-Identifier: MIT
/**
 * @file
 * memslot.hpp - atomic batches of KVM memory-slot changes, for C++20.
 *
 * Header only; a thin, typed layer over <linux/memslot.h>, which documents the ioctls and every
 * errno.  Typical use:
 *
 *	auto dev = memslot::device::open();
 *	dev.bind(vm_fd);
 *	memslot::batch batch;
 *	batch.set({.slot = 3, .guest_phys_addr = gpa, .memory_size = size, .userspace_addr = hva})
 *		.remove(4);
 *	memslot::report report = dev.commit(batch);
 *
 * Each operation comes twice: NAME() throws memslot::error, try_NAME() is noexcept and returns a
 * memslot::result.  Neither allocates memory unless it throws; but for query(), while the layout
 * has too little room (see layout::reserve()).
 *
 * With -fno-exceptions all that throws memslot::error is left out, and the rest is the same; but
 * that memory runs out ends the program then, where otherwise std::bad_alloc is thrown or ENOMEM
 * returned.  Who makes room with reserve() beforehand allocates nothing later.
 */
#pragma once

#include <linux/memslot.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <fcntl.h>
#include <initializer_list>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <sys/ioctl.h>
#include <system_error>
#include <unistd.h>
#include <utility>
#include <variant>
#include <vector>

namespace memslot {

/** Where the device is, unless somebody moved it. */
inline constexpr const char *default_path = "/dev/memslot";

/** What can fail. */
enum class operation : std::uint8_t { open, info, bind, stage, commit, reset, query };

/** What a module can do, or cannot; see device_info::has(). */
enum class feature : std::uint64_t {
	test_only = MEMSLOT_FEATURE_TEST_ONLY,
	park = MEMSLOT_FEATURE_PARK,
	replace_all = MEMSLOT_FEATURE_REPLACE_ALL,
	if_generation = MEMSLOT_FEATURE_IF_GENERATION,
	dirty_bitmap = MEMSLOT_FEATURE_DIRTY_BITMAP,
	query = MEMSLOT_FEATURE_QUERY,
};

/** All that this header knows. */
inline constexpr std::array features{feature::query,	     feature::test_only,
				     feature::park,	     feature::replace_all,
				     feature::if_generation, feature::dirty_bitmap};

namespace detail {

/*
 * A newer module may know more numbers than this header.  An enum holds no more bits than its
 * enumerators have (anything else is undefined), so all of them become the highest it can hold.
 */
template <auto last>
constexpr decltype(last) to_enum(std::uint32_t number) noexcept
{
	constexpr std::uint32_t highest = std::bit_ceil(last + 1U) - 1;

	static_assert(highest > last, "no number is left for what is unknown");
	return static_cast<decltype(last)>(std::min(number, highest));
}

} // namespace detail

/** The reason with this number; one that only a newer module knows has words, but no name. */
[[nodiscard]] constexpr enum memslot_reason to_reason(std::uint32_t number) noexcept
{
	return detail::to_enum<MEMSLOT_REASON_NO_ROOM>(number);
}

/** The strategy with this number; see to_reason(). */
[[nodiscard]] constexpr enum memslot_strategy to_strategy(std::uint32_t number) noexcept
{
	return detail::to_enum<MEMSLOT_STRATEGY_PARK>(number);
}

/** The cause of parking with this number; see to_reason(). */
[[nodiscard]] constexpr enum memslot_park_cause to_park_cause(std::uint32_t number) noexcept
{
	return detail::to_enum<MEMSLOT_PARK_DIRTY_LOG>(number);
}

/*
 * The switches below have no default on purpose: so the compiler tells our tests which enumerator
 * has no words.  A program that has a newer <linux/memslot.h> than this header shall not hear of
 * it, or be stopped by it.
 */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wswitch"
#pragma GCC diagnostic ignored "-Wswitch-default"
#pragma GCC diagnostic ignored "-Wswitch-enum"

/**
 * What a reason means and what to do about it, as a phrase without a full stop.
 *
 * @return never empty; a reason that only a newer module knows says so
 */
[[nodiscard]] constexpr std::string_view words(enum memslot_reason reason) noexcept
{
	switch (reason) {
	case MEMSLOT_REASON_NONE:
		return "see the errno";
	case MEMSLOT_REASON_ARGUMENT:
		return "entry_size, a reserved field or one whose flag is not set is wrong, or "
		       "replace_all names nothing; if memslot.hpp made the call, build with this "
		       "module's <linux/memslot.h>";
	case MEMSLOT_REASON_UNREADABLE:
		return "the entry lies in memory that cannot be read";
	case MEMSLOT_REASON_ENTRY_TOO_NEW:
		return "the entry uses a field that this module does not know; "
		       "load a newer module";
	case MEMSLOT_REASON_TOO_MANY:
		return "too many entries in one batch; the limit is info().max_entries";
	case MEMSLOT_REASON_SLOT_ID:
		return "the slot id is above info().max_slot";
	case MEMSLOT_REASON_ADDRESS_SPACE:
		return "the VM has no such address space; bind() returns how many there are";
	case MEMSLOT_REASON_FLAGS:
		return "an entry flag is unknown, or this machine cannot do it";
	case MEMSLOT_REASON_GPA_ALIGN:
		return "guest_phys_addr is not page aligned";
	case MEMSLOT_REASON_SIZE_ALIGN:
		return "memory_size is not page aligned";
	case MEMSLOT_REASON_HVA_ALIGN:
		return "userspace_addr is not page aligned";
	case MEMSLOT_REASON_HVA_RANGE:
		return "userspace_addr and memory_size are not a range of untagged user addresses";
	case MEMSLOT_REASON_GPA_RANGE:
		return "the region wraps or ends above what the VM can address";
	case MEMSLOT_REASON_TOO_LARGE:
		return "more than 2^31 - 1 pages in one slot";
	case MEMSLOT_REASON_DUPLICATE:
		return "an earlier entry, staged or inline, names the same slot; "
		       "keep one entry per slot";
	case MEMSLOT_REASON_NO_SLOT:
		return "the slot to delete does not exist";
	case MEMSLOT_REASON_OVERLAP_ENTRY:
		return "the region overlaps another entry of the batch";
	case MEMSLOT_REASON_OVERLAP_SLOT:
		return "the region overlaps a slot that stays; "
		       "remove or change that slot in the same batch";
	case MEMSLOT_REASON_GUEST_MEMFD:
		return "the slot has a guest_memfd; change it through KVM itself";
	case MEMSLOT_REASON_NOT_BOUND:
		return "no VM is bound to this file; call bind() first";
	case MEMSLOT_REASON_BOUND:
		return "a VM is bound to this file already; open the device once per VM";
	case MEMSLOT_REASON_NOT_KVM:
		return "vm_fd is not what KVM_CREATE_VM returned";
	case MEMSLOT_REASON_OWNER:
		return "the VM belongs to another process; only its creator may change it";
	case MEMSLOT_REASON_DEAD:
		return "the VM is dead";
	case MEMSLOT_REASON_VM_TYPE:
		return "the VM is encrypted or protected; change it through KVM itself";
	case MEMSLOT_REASON_PAGE_TRACK:
		return "another module (KVMGT) tracks the VM's pages";
	case MEMSLOT_REASON_MEMORY:
		return "the kernel is out of memory for this entry";
	case MEMSLOT_REASON_PARK_TIMEOUT:
		return "a vCPU did not leave KVM_RUN in time; try again, "
		       "or see whether it waits for its own memory (userfaultfd, FUSE, NFS)";
	case MEMSLOT_REASON_LOCKED:
		return "another call on this file or this VM (a change of its slots, its dirty "
		       "log, a new vCPU, Xen's) did not end in time; try again, or see whether "
		       "it waits for its own memory (userfaultfd, FUSE, NFS)";
	case MEMSLOT_REASON_GENERATION:
		return "the layout has changed since it was queried; query it and build the batch "
		       "again";
	case MEMSLOT_REASON_BITMAP_ALIGN:
		return "the buffer for the last dirty bitmap is not a multiple of 8";
	case MEMSLOT_REASON_BITMAP_SIZE:
		return "the buffer for the last dirty bitmap is too small for today's slot, or all "
		       "buffers together are above 64 MiB; see dirty_bitmap_words()";
	case MEMSLOT_REASON_BITMAP_UNWRITABLE:
		return "the buffer for the last dirty bitmap cannot be written";
	case MEMSLOT_REASON_BITMAP_LOCKED:
		return "the buffers for last dirty bitmaps are above RLIMIT_MEMLOCK; raise it "
		       "(ulimit -l), or commit in smaller batches";
	case MEMSLOT_REASON_NO_DIRTY_LOG:
		return "there is no last dirty bitmap: the slot has no dirty log, or keeps it";
	case MEMSLOT_REASON_DIRTY_RING:
		return "there is no last dirty bitmap: the VM has dirty rings";
	case MEMSLOT_REASON_QUERY_ONLY:
		return "the file is bound for queries only; open the device again and bind() "
		       "without access::query_only";
	case MEMSLOT_REASON_NO_ROOM:
		return "there are more slots than room for them; try again";
	}
	return "a reason that only a newer memslot.hpp has words for";
}

/** How a commit kept vCPUs from seeing a mixture, as one word; never empty. */
[[nodiscard]] constexpr std::string_view words(enum memslot_strategy strategy) noexcept
{
	switch (strategy) {
	case MEMSLOT_STRATEGY_NONE:
		return "none";
	case MEMSLOT_STRATEGY_FENCE:
		return "fence";
	case MEMSLOT_STRATEGY_PARK:
		return "park";
	}
	return "unknown";
}

/** Why a commit parked, as a phrase; never empty. */
[[nodiscard]] constexpr std::string_view words(enum memslot_park_cause cause) noexcept
{
	switch (cause) {
	case MEMSLOT_PARK_NOT:
		return "it did not park";
	case MEMSLOT_PARK_REQUESTED:
		return "parking was requested";
	case MEMSLOT_PARK_SHADOW_PAGING:
		return "the VM's page tables are shadowed (npt=0, ept=0)";
	case MEMSLOT_PARK_NESTED:
		return "the VM has run a nested guest";
	case MEMSLOT_PARK_UNCOVERS:
		return "memory goes away uncovered while a vCPU could start a nested guest";
	case MEMSLOT_PARK_DIRTY_LOG:
		return "a last dirty bitmap is handed back, or a slot with a dirty log moves";
	}
	return "unknown";
}

/** The operation's name; never empty. */
[[nodiscard]] constexpr std::string_view words(operation op) noexcept
{
	switch (op) {
	case operation::open:
		return "open";
	case operation::info:
		return "info";
	case operation::bind:
		return "bind";
	case operation::stage:
		return "stage";
	case operation::commit:
		return "commit";
	case operation::reset:
		return "reset";
	case operation::query:
		return "query";
	}
	return "unknown";
}

/** What a feature is good for, as a phrase; never empty. */
[[nodiscard]] constexpr std::string_view words(feature which) noexcept
{
	switch (which) {
	case feature::test_only:
		return "check a commit and report what it would do";
	case feature::park:
		return "park the vCPUs on request";
	case feature::replace_all:
		return "replace all slots of an address space";
	case feature::if_generation:
		return "commit only if nobody changed the layout since it was queried";
	case feature::dirty_bitmap:
		return "hand back the last dirty bitmap of a slot that goes";
	case feature::query:
		return "tell the layout of an address space";
	}
	return "unknown";
}

#pragma GCC diagnostic pop

/** Why an operation failed; what a result holds instead of a value. */
struct failure {
	operation op;
	/** errno, never 0 */
	int errnum;
	/** what exactly was wrong; MEMSLOT_REASON_NONE: the errno says it all */
	enum memslot_reason reason = MEMSLOT_REASON_NONE;
	/**
	 * Position of the entry to blame, MEMSLOT_NO_ENTRY if none is.  For stage() it counts
	 * within the batch passed, for commit() it counts the staged entries first, then the
	 * batch passed (see batch::entries()).
	 */
	std::uint32_t index = MEMSLOT_NO_ENTRY;

	/** One line: operation, entry, reason and what to do; the errno's own text is not in it. */
	[[nodiscard]] std::string message() const
	{
		std::string text = "memslot: ";

		text += words(op);
		if (index != MEMSLOT_NO_ENTRY)
			text += ": entry " + std::to_string(index);
		if (op == operation::open && (errnum == ENOENT || errnum == ENXIO))
			text += ": load the module first (modprobe memslot)";
		else if (op == operation::open && (errnum == EACCES || errnum == EPERM))
			text += ": join the group that owns the device (ls -l /dev/memslot)";
		else if (reason == MEMSLOT_REASON_GENERATION && errnum == EINVAL)
			text += ": if_generation has no layout of this address space";
		else if (reason != MEMSLOT_REASON_NONE)
			text.append(": ").append(words(reason));
		return text;
	}
};

#ifdef __cpp_exceptions

/** Thrown by every operation that is not called try_; code() carries the errno. */
class error : public std::system_error {
public:
	/** @param why a failure with an errno; may throw std::bad_alloc */
	explicit error(const failure &why)
	    : std::system_error(why.errnum, std::generic_category(), why.message()), why_(why)
	{
	}

	/** Everything known about the failure. */
	[[nodiscard]] const failure &why() const noexcept
	{
		return why_;
	}

	/** Position of the entry to blame (see failure::index), or nothing. */
	[[nodiscard]] std::optional<std::uint32_t> index() const noexcept
	{
		if (why_.index == MEMSLOT_NO_ENTRY)
			return std::nullopt;
		return why_.index;
	}

	/** What exactly was wrong. */
	[[nodiscard]] enum memslot_reason reason() const noexcept
	{
		return why_.reason;
	}

	/** reason(), as a phrase. */
	[[nodiscard]] std::string_view reason_words() const noexcept
	{
		return words(why_.reason);
	}

private:
	failure why_;
};

#endif /* __cpp_exceptions */

/** A value or a failure, in the manner of C++23's std::expected. */
template <typename T>
class [[nodiscard]] result {
public:
	/** A success. */
	result(T value) noexcept : content_(std::in_place_index<0>, std::move(value))
	{
	}

	/** A failure. */
	result(const failure &why) noexcept : content_(std::in_place_index<1>, why)
	{
	}

	/** True if there is a value. */
	[[nodiscard]] bool has_value() const noexcept
	{
		return content_.index() == 0;
	}

	/** True if there is a value. */
	explicit operator bool() const noexcept
	{
		return has_value();
	}

#ifdef __cpp_exceptions
	/** The value; throws memslot::error if there is none. */
	[[nodiscard]] T &value() &
	{
		must_have_value();
		return **this;
	}

	/** The value; throws memslot::error if there is none. */
	[[nodiscard]] const T &value() const &
	{
		must_have_value();
		return **this;
	}

	/** The value, moved out; throws memslot::error if there is none. */
	[[nodiscard]] T &&value() &&
	{
		must_have_value();
		return *std::move(*this);
	}
#endif

	/** The value; only if has_value(). */
	[[nodiscard]] T &operator*() &noexcept
	{
		return *std::get_if<0>(&content_);
	}

	/** The value, moved out; only if has_value(). */
	[[nodiscard]] T &&operator*() &&noexcept
	{
		return std::move(*std::get_if<0>(&content_));
	}

	/** The value; only if has_value(). */
	[[nodiscard]] T *operator->() noexcept
	{
		return std::get_if<0>(&content_);
	}

	/** The value; only if has_value(). */
	[[nodiscard]] const T &operator*() const &noexcept
	{
		return *std::get_if<0>(&content_);
	}

	/** The value; only if has_value(). */
	[[nodiscard]] const T *operator->() const noexcept
	{
		return std::get_if<0>(&content_);
	}

	/** The failure; only if not has_value(). */
	[[nodiscard]] const failure &error() const noexcept
	{
		return *std::get_if<1>(&content_);
	}

private:
#ifdef __cpp_exceptions
	void must_have_value() const
	{
		if (!has_value())
			throw memslot::error(error());
	}
#endif

	std::variant<T, failure> content_;
};

/** Success or a failure. */
template <>
class [[nodiscard]] result<void> {
public:
	/** A success. */
	result() noexcept = default;

	/** A failure. */
	result(const failure &why) noexcept : failure_(why)
	{
	}

	/** True on success. */
	[[nodiscard]] bool has_value() const noexcept
	{
		return !failure_;
	}

	/** True on success. */
	explicit operator bool() const noexcept
	{
		return has_value();
	}

#ifdef __cpp_exceptions
	/** Throws memslot::error unless it was a success. */
	void value() const
	{
		if (failure_)
			throw memslot::error(*failure_);
	}
#endif

	/** The failure; only if not has_value(). */
	[[nodiscard]] const failure &error() const noexcept
	{
		return *failure_;
	}

private:
	std::optional<failure> failure_;
};

/** The wanted state of one slot. */
struct region {
	/** slot id, 0 ... device_info::max_slot */
	std::uint32_t slot = 0;
	/** 0, or 1 for system management mode */
	std::uint32_t address_space = 0;
	/** first guest physical address, bytes, page aligned */
	std::uint64_t guest_phys_addr = 0;
	/** bytes, page aligned, at most 2^31 - 1 pages; 0 removes the slot */
	std::uint64_t memory_size = 0;
	/** host virtual address of the first byte, page aligned */
	const void *userspace_addr = nullptr;
	/** KVM_MEM_LOG_DIRTY_PAGES */
	bool log_dirty_pages = false;
	/** KVM_MEM_READONLY: guest writes become KVM_EXIT_MMIO */
	bool readonly = false;
};

/** A slot as it is today. */
struct slot_info : region {
	/**
	 * KVM_MEM_GUEST_MEMFD: memory that is not this process's; a commit that names such a slot
	 * fails with EOPNOTSUPP, even to leave it as it is
	 */
	bool guest_memfd = false;
};

/**
 * The slots of one address space at one moment, sorted by guest address: a contiguous range of
 * slot_info.  KVM's own internal slots are not among them.
 *
 * device::query() fills it, as often as wanted; it keeps its memory.
 */
class layout {
public:
	using value_type = slot_info;
	using const_iterator = const slot_info *;

	/** What was never queried: empty, and no commit can depend on it. */
	layout() noexcept = default;

	/** Has no more room than it needs; may throw std::bad_alloc. */
	layout(const layout &other)
	    : slots_(other.slots_), address_space_(other.address_space_),
	      generation_(other.generation_)
	{
	}

	/** Keeps its own room; may throw std::bad_alloc, which leaves this layout as it was. */
	layout &operator=(const layout &other)
	{
		/* All that can throw, before anything changes */
		slots_.reserve(other.size());
		slots_ = other.slots_;
		address_space_ = other.address_space_;
		generation_ = other.generation_;
		return *this;
	}

	/** Leaves @p other as if it had never been queried. */
	layout(layout &&other) noexcept
	{
		swap(other);
	}

	layout &operator=(layout &&other) noexcept
	{
		layout moved(std::move(other));

		swap(moved);
		return *this;
	}

	~layout() = default;

	/**
	 * Makes room: queries will not allocate while there are up to @p count slots.  A copy has
	 * no such room.
	 */
	void reserve(std::size_t count)
	{
		slots_.reserve(count);
		if (entries_.size() < count)
			entries_.resize(count);
	}

	/** The slot with the lowest guest address. */
	[[nodiscard]] const_iterator begin() const noexcept
	{
		return slots_.data();
	}

	/** Past the slot with the highest guest address. */
	[[nodiscard]] const_iterator end() const noexcept
	{
		return slots_.data() + slots_.size();
	}

	/** Number of slots. */
	[[nodiscard]] std::size_t size() const noexcept
	{
		return slots_.size();
	}

	/** True if there are no slots. */
	[[nodiscard]] bool empty() const noexcept
	{
		return slots_.empty();
	}

	/** By position, 0 ... size() - 1, not by slot id. */
	[[nodiscard]] const slot_info &operator[](std::size_t position) const noexcept
	{
		return slots_[position];
	}

	/** The slot with this id, nullptr if there is none; looks at all. */
	[[nodiscard]] const slot_info *find(std::uint32_t slot) const noexcept
	{
		const auto found = std::ranges::find(slots_, slot, &region::slot);

		return found == slots_.end() ? nullptr : &*found;
	}

	/** The slot that holds this guest physical address, nullptr if none does. */
	[[nodiscard]] const slot_info *find_address(std::uint64_t guest_phys_addr) const noexcept
	{
		const auto after = std::ranges::upper_bound(slots_, guest_phys_addr, {},
							    &region::guest_phys_addr);

		if (after == slots_.begin())
			return nullptr;

		const slot_info &before = *std::prev(after);

		return guest_phys_addr - before.guest_phys_addr < before.memory_size ? &before
										     : nullptr;
	}

	/** Which address space was queried. */
	[[nodiscard]] std::uint32_t address_space() const noexcept
	{
		return address_space_;
	}

	/** KVM's generation of the address space at that moment; nothing if it was never queried.
	 */
	[[nodiscard]] std::optional<std::uint64_t> generation() const noexcept
	{
		return generation_;
	}

private:
	friend class device;

	void swap(layout &other) noexcept
	{
		std::swap(entries_, other.entries_);
		std::swap(slots_, other.slots_);
		std::swap(address_space_, other.address_space_);
		std::swap(generation_, other.generation_);
	}

	/* Takes over what the kernel wrote into entries_; room for as many was reserved */
	void assign(const memslot_query &reply) noexcept
	{
		slots_.clear();
		for (const memslot_entry &from : std::span(entries_).first(reply.count)) {
			slot_info to;

			to.slot = from.slot;
			to.address_space = from.address_space;
			to.guest_phys_addr = from.guest_phys_addr;
			to.memory_size = from.memory_size;
			to.userspace_addr = reinterpret_cast<const void *>(
				static_cast<std::uintptr_t>(from.userspace_addr));
			to.log_dirty_pages = from.flags & MEMSLOT_ENTRY_LOG_DIRTY_PAGES;
			to.readonly = from.flags & MEMSLOT_ENTRY_READONLY;
			to.guest_memfd = from.flags & MEMSLOT_ENTRY_GUEST_MEMFD;
			slots_.push_back(to);
		}
		address_space_ = reply.address_space;
		generation_ = reply.generation;
	}

	/*
	 * The kernel's array: all of it is room, what it holds is of no use after a query.  There
	 * is room for as many slots_.
	 */
	std::vector<memslot_entry> entries_;
	std::vector<slot_info> slots_;
	std::uint32_t address_space_ = 0;
	std::optional<std::uint64_t> generation_;
};

/** Length of a buffer for the last dirty bitmap of a slot with @p memory_size bytes. */
[[nodiscard]] constexpr std::size_t dirty_bitmap_words(std::uint64_t memory_size) noexcept
{
	constexpr std::uint64_t page = 4096;
	constexpr std::uint64_t bits = 64;

	return static_cast<std::size_t>((memory_size / page + bits - 1) / bits);
}

/**
 * The entries of one commit: at most one per (address space, slot), the last one given wins.
 *
 * Nothing is checked here; stage() and commit() check.  An entry keeps the position at which its
 * slot was first named, so a failure's index counts the slots in the order the caller named them.
 */
class batch {
public:
	/** Empty. */
	batch() noexcept = default;

	/** The same entries; may throw std::bad_alloc. */
	batch(const batch &other) = default;

	/** Keeps its own room; may throw std::bad_alloc, which leaves this batch as it was. */
	batch &operator=(const batch &other)
	{
		/* All that can throw, before anything changes */
		reserve(other.size());
		entries_ = other.entries_;
		order_ = other.order_;
		return *this;
	}

	/** Leaves @p other empty. */
	batch(batch &&other) noexcept = default;

	/** Leaves @p other empty. */
	batch &operator=(batch &&other) noexcept
	{
		batch moved(std::move(other));

		std::swap(entries_, moved.entries_);
		std::swap(order_, moved.order_);
		return *this;
	}

	~batch() = default;

	/**
	 * The slot shall be this region, whether it exists today or not.
	 *
	 * @return this batch; may throw std::bad_alloc, which leaves the batch as it was
	 */
	batch &set(const region &want)
	{
		return put(want, no_buffer);
	}

	/**
	 * The same, and the commit writes the last dirty bitmap of today's slot to @p last_dirty:
	 * bit (page % 64) of word (page / 64) says that the page was written since the log was last
	 * read or cleared.  No write is missing.  Pages that keep their host address also stay
	 * dirty in the new slot's log.
	 *
	 * Today's slot must have a dirty log, and lose it by being removed, replaced, moved or
	 * switched off.
	 *
	 * @param last_dirty at least dirty_bitmap_words() of today's size (an empty one is too
	 *	small, it does not mean none); must live until the commit, and is written by its
	 *	success only
	 */
	batch &set(const region &want, std::span<std::uint64_t> last_dirty)
	{
		return put(want, buffer(last_dirty));
	}

	/**
	 * The slot shall be absent; committing fails with ENOENT if it is absent today.
	 *
	 * @return this batch; may throw std::bad_alloc, which leaves the batch as it was
	 */
	batch &remove(std::uint32_t slot, std::uint32_t address_space = 0)
	{
		return put({.slot = slot, .address_space = address_space}, no_buffer);
	}

	/** The same, with the slot's last dirty bitmap; see set(). */
	batch &remove(std::uint32_t slot, std::span<std::uint64_t> last_dirty,
		      std::uint32_t address_space = 0)
	{
		return put({.slot = slot, .address_space = address_space}, buffer(last_dirty));
	}

	/** Drops all entries, keeps the memory reserved for them. */
	void clear() noexcept
	{
		entries_.clear();
		order_.clear();
	}

	/** Number of entries. */
	[[nodiscard]] std::size_t size() const noexcept
	{
		return entries_.size();
	}

	/** True if there are no entries. */
	[[nodiscard]] bool empty() const noexcept
	{
		return entries_.empty();
	}

	/** Makes room: up to @p count entries in all, set() and remove() will not allocate. */
	void reserve(std::size_t count)
	{
		entries_.reserve(count);
		order_.reserve(count);
	}

	/** What the kernel will get; valid until the batch changes. */
	[[nodiscard]] std::span<const memslot_entry> entries() const noexcept
	{
		return entries_;
	}

private:
	/* Where the kernel shall write a last dirty bitmap */
	struct address_and_bytes {
		std::uint64_t address;
		std::uint64_t bytes;
	};

	static constexpr address_and_bytes no_buffer{0, 0};

	static address_and_bytes buffer(std::span<std::uint64_t> words) noexcept
	{
		/* An empty span may have no address; one that is not 0 is refused as too small */
		if (words.empty())
			return {alignof(std::uint64_t), 0};
		return {reinterpret_cast<std::uintptr_t>(words.data()), words.size_bytes()};
	}

	batch &put(const region &want, const address_and_bytes &last_dirty)
	{
		/* Not a list of all fields: a newer <linux/memslot.h> may have more of them */
		memslot_entry entry{};

		entry.slot = want.slot;
		entry.address_space = want.address_space;
		entry.flags = (want.log_dirty_pages ? MEMSLOT_ENTRY_LOG_DIRTY_PAGES : 0U) |
			      (want.readonly ? MEMSLOT_ENTRY_READONLY : 0U);
		entry.guest_phys_addr = want.guest_phys_addr;
		entry.memory_size = want.memory_size;
		entry.userspace_addr = reinterpret_cast<std::uintptr_t>(want.userspace_addr);
		entry.dirty_bitmap = last_dirty.address;
		entry.dirty_bitmap_size = last_dirty.bytes;
		return put(entry);
	}

	static std::uint64_t key(const memslot_entry &entry) noexcept
	{
		return std::uint64_t{entry.address_space} << 32 | entry.slot;
	}

	batch &put(const memslot_entry &entry)
	{
		const auto key_at = [this](std::uint32_t at) { return key(entries_[at]); };
		auto found = std::ranges::lower_bound(order_, key(entry), {}, key_at);

		if (found != order_.end() && key_at(*found) == key(entry)) {
			entries_[*found] = entry;
			return *this;
		}
		if (order_.size() == order_.capacity() || entries_.size() == entries_.capacity()) {
			const auto position = found - order_.begin();

			/* All that can throw, before anything changes */
			reserve(std::max<std::size_t>(8, 2 * size()));
			found = order_.begin() + position;
		}
		order_.insert(found, static_cast<std::uint32_t>(entries_.size()));
		entries_.push_back(entry);
		return *this;
	}

	std::vector<memslot_entry> entries_;
	/* Positions in entries_, sorted by (address space, slot) */
	std::vector<std::uint32_t> order_;
};

/** Address spaces by number: {}, {0} or {0, 1}. */
class address_spaces {
public:
	/** None. */
	constexpr address_spaces() noexcept = default;

	/** These; committing fails with EINVAL where the VM has no such address space. */
	constexpr address_spaces(std::initializer_list<std::uint32_t> which) noexcept
	{
		for (const std::uint32_t each : which)
			mask_ |= 1U << std::min(each, 31U);
	}

	/** Bit (1 << address space) for each one. */
	[[nodiscard]] constexpr std::uint32_t mask() const noexcept
	{
		return mask_;
	}

private:
	std::uint32_t mask_ = 0;
};

/** The moments at which layouts were queried, at most one per address space. */
class generations {
public:
	/** None. */
	generations() noexcept = default;

	/** That of one layout. */
	generations(const layout &queried) noexcept
	{
		add(queried);
	}

	/** Those of two layouts. */
	generations(const layout &one, const layout &other) noexcept
	{
		add(one);
		add(other);
	}

	/** True if a commit with this depends on nothing. */
	[[nodiscard]] bool empty() const noexcept
	{
		return !some_;
	}

	/** That of an address space, or nothing. */
	[[nodiscard]] std::optional<std::uint64_t> of(std::uint32_t address_space) const noexcept
	{
		return address_space < known_.size() ? known_[address_space] : std::nullopt;
	}

private:
	void add(const layout &queried) noexcept
	{
		/* A layout that was never queried is no reason to depend on nothing */
		some_ = true;
		if (!queried.generation() || queried.address_space() >= known_.size())
			return;

		std::optional<std::uint64_t> &at = known_[queried.address_space()];

		/* If there are two of one address space, the older one is outdated */
		at = at ? std::min(*at, *queried.generation()) : *queried.generation();
	}

	std::array<std::optional<std::uint64_t>, MEMSLOT_MAX_ADDRESS_SPACES> known_{};
	bool some_ = false;
};

/** How to commit, say {.test_only = true, .if_generation = layout}. */
struct commit_options {
	/** check everything and report, apply nothing */
	bool test_only = false;
	/** park the vCPUs even where a fence would do */
	bool park = false;
	/** in these address spaces the slots shall be those of the batch, and no others */
	address_spaces replace_all{};
	/**
	 * only if the layouts are still those that were queried, else ESTALE; one for each address
	 * space that an entry or replace_all names, else EINVAL (whose index counts within the
	 * batch passed; ESTALE where only a staged entry names it)
	 */
	generations if_generation{};
};

/** What the module can do. */
struct device_info {
	/** bits MEMSLOT_FEATURE_* */
	std::uint64_t features;
	/** highest slot id, in each address space */
	std::uint32_t max_slot;
	/** most address spaces a VM can have here */
	std::uint32_t max_address_spaces;
	/** most entries of one batch, staged and inline together */
	std::uint32_t max_entries;
	/** bit (1 << MEMSLOT_STRATEGY_*) for each one available */
	std::uint32_t strategies;

	/** Whether the module has it. */
	[[nodiscard]] constexpr bool has(feature which) const noexcept
	{
		return features & static_cast<std::uint64_t>(which);
	}

	/** Whether commits can be kept from vCPUs in this way here. */
	[[nodiscard]] constexpr bool has(enum memslot_strategy how) const noexcept
	{
		return strategies & 1U << how;
	}
};

/** What a device is bound to a VM for. */
enum class access : std::uint8_t {
	/** anything; the VM must be this process's */
	change,
	/** query(); the VM may be any process's, and of any type */
	query_only,
};

/** What a commit did, or with commit_options::test_only would do. */
struct report {
	enum memslot_strategy strategy;
	enum memslot_park_cause park_cause;
	/** slots that did not exist */
	std::uint32_t created;
	/** slots that are gone */
	std::uint32_t deleted;
	/**
	 * slots with another size, host address or READONLY, or that are moved and have dirty
	 * logging switched at once
	 */
	std::uint32_t replaced;
	/** slots with only another guest address */
	std::uint32_t moved;
	/** slots with only dirty logging switched */
	std::uint32_t reflagged;
	/** how often the commit waited until nobody had a slot of the layout before: 0 if nothing
	    changes, 2 if there are tombstones, else 1 */
	std::uint32_t grace_periods;
	/** pages whose gfn keeps its host address */
	std::uint64_t pages_kept;
	/** pages whose gfn got another host address */
	std::uint64_t pages_remapped;
	/** pages whose gfn has no slot any more */
	std::uint64_t pages_removed;
	/** pages whose gfn had no slot before */
	std::uint64_t pages_added;
	/** how long page faults in the changed ranges could not complete */
	std::chrono::nanoseconds ns_fenced;
	/** KVM's generation per address space, afterwards */
	std::array<std::uint64_t, MEMSLOT_MAX_ADDRESS_SPACES> generation;
	/** ranges of guest memory that went away while vCPUs ran on */
	std::uint32_t tombstones;
	/** 1 if the VM's first nested guest got its root meanwhile; in such memory it is dropped */
	std::uint32_t late_root;
};

/**
 * An open /dev/memslot; owns the file descriptor, can be moved but not copied.
 *
 * Every method but the destructor, the assignment and release() may be called from several threads
 * at once: the kernel runs them one after the other, query() and info() beside them.  Besides what
 * each method names, any of them can fail with EINTR (a fatal signal is pending) and, on a
 * moved-from device, EBADF.
 */
class device {
public:
	/** Owns nothing. */
	device() noexcept = default;

	/** Takes over a descriptor of /dev/memslot, say one that was passed to this process. */
	explicit device(int fd) noexcept : fd_(fd)
	{
	}

	device(device &&other) noexcept : fd_(std::exchange(other.fd_, -1))
	{
	}

	device &operator=(device &&other) noexcept
	{
		if (this != &other) {
			if (fd_ >= 0)
				::close(fd_);
			fd_ = std::exchange(other.fd_, -1);
		}
		return *this;
	}

	device(const device &) = delete;
	device &operator=(const device &) = delete;

	~device()
	{
		if (fd_ >= 0)
			::close(fd_);
	}

#ifdef __cpp_exceptions
	/**
	 * Opens the device, close-on-exec.
	 *
	 * Errors: ENOENT or ENXIO (the module is not loaded), EACCES (not in the device's group),
	 * EMFILE, ENFILE, ENOMEM.
	 */
	[[nodiscard]] static device open(const char *path = default_path)
	{
		return try_open(path).value();
	}
#endif

	/** open() without exceptions. */
	static result<device> try_open(const char *path = default_path) noexcept
	{
		const int fd = ::open(path, O_RDWR | O_CLOEXEC);

		if (fd < 0)
			return failure{.op = operation::open, .errnum = errno};
		return device(fd);
	}

	/** The descriptor, -1 if none is owned; remains this object's. */
	[[nodiscard]] int fd() const noexcept
	{
		return fd_;
	}

	/** Gives the descriptor, -1 if none is owned, to the caller; owns nothing then. */
	[[nodiscard]] int release() noexcept
	{
		return std::exchange(fd_, -1);
	}

#ifdef __cpp_exceptions
	/**
	 * What the module can do; needs no VM.
	 *
	 * Errors: ENOTTY (the file is not /dev/memslot).
	 */
	[[nodiscard]] device_info info() const
	{
		return try_info().value();
	}
#endif

	/** info() without exceptions. */
	result<device_info> try_info() const noexcept
	{
		memslot_info arg{};

		arg.size = sizeof(arg);
		if (::ioctl(fd_, MEMSLOT_IOC_INFO, &arg) < 0)
			return failure{.op = operation::info, .errnum = errno};
		return device_info{
			.features = arg.features,
			.max_slot = arg.max_slot,
			.max_address_spaces = arg.max_address_spaces,
			.max_entries = arg.max_entries,
			.strategies = arg.strategies,
		};
	}

#ifdef __cpp_exceptions
	/**
	 * Binds this open file to one VM, for good.  @p vm_fd may be closed afterwards; the VM
	 * lives until this device is closed too.
	 *
	 * @param vm_fd what KVM_CREATE_VM returned
	 * @param what_for with access::query_only, all but info() and query() fail with EACCES
	 * @return number of address spaces of this VM, 1 ... MEMSLOT_MAX_ADDRESS_SPACES
	 *
	 * Errors: EBADF (vm_fd is not open), EINVAL (not a VM), EBUSY (bound already), EIO (VM of
	 * another process, or dead), EOPNOTSUPP (VM type).
	 */
	std::uint32_t bind(int vm_fd, access what_for = access::change)
	{
		return try_bind(vm_fd, what_for).value();
	}
#endif

	/** bind() without exceptions. */
	result<std::uint32_t> try_bind(int vm_fd, access what_for = access::change) noexcept
	{
		memslot_bind arg{};

		arg.size = sizeof(arg);
		arg.flags = what_for == access::query_only ? MEMSLOT_BIND_QUERY_ONLY : 0U;
		arg.vm_fd = vm_fd;
		if (::ioctl(fd_, MEMSLOT_IOC_BIND, &arg) < 0)
			return failure{
				.op = operation::bind,
				.errnum = errno,
				.reason = to_reason(arg.reason),
			};
		return arg.address_spaces;
	}

#ifdef __cpp_exceptions
	/**
	 * Appends the batch to what the next commit() applies: all of it, or nothing.  A slot may
	 * be staged only once.
	 *
	 * Errors: ENOTCONN (not bound), EACCES (bound for queries), EIO (VM of another process, or
	 * dead), E2BIG (too many entries), EINVAL or EOPNOTSUPP (an entry; see failure::reason),
	 * ENOMEM.
	 */
	void stage(const batch &entries)
	{
		try_stage(entries).value();
	}
#endif

	/** stage() without exceptions. */
	result<void> try_stage(const batch &entries) noexcept
	{
		memslot_stage arg{};

		arg.size = sizeof(arg);
		arg.entries = reinterpret_cast<std::uintptr_t>(entries.entries().data());
		arg.count = static_cast<std::uint32_t>(entries.size());
		arg.entry_size = sizeof(memslot_entry);
		arg.failed_index = MEMSLOT_NO_ENTRY;
		if (::ioctl(fd_, MEMSLOT_IOC_STAGE, &arg) < 0)
			return failure{
				.op = operation::stage,
				.errnum = errno,
				.reason = to_reason(arg.reason),
				.index = arg.failed_index,
			};
		return {};
	}

#ifdef __cpp_exceptions
	/**
	 * Drops what stage() appended.
	 *
	 * Errors: ENOTCONN (not bound), EACCES (bound for queries), EIO (VM of another process, or
	 * dead).
	 */
	void reset()
	{
		try_reset().value();
	}
#endif

	/** reset() without exceptions. */
	result<void> try_reset() noexcept
	{
		memslot_reset arg{};

		arg.size = sizeof(arg);
		if (::ioctl(fd_, MEMSLOT_IOC_RESET, &arg) < 0)
			return failure{.op = operation::reset, .errnum = errno};
		return {};
	}

#ifdef __cpp_exceptions
	/**
	 * Applies what was staged and @p entries as one change, or nothing of it.
	 *
	 * On success nothing is staged any more; on failure what was staged still is.  @p entries
	 * stays as it is: clear() it before using it for something else.  When this returns,
	 * memory that the change removed from the guest may be unmapped.
	 *
	 * Errors: those of stage(), ENOENT (a slot to remove does not exist), EEXIST (regions
	 * overlap), EBUSY (vCPUs could not be parked in time), ESTALE (the layout is not the one of
	 * if_generation), EOPNOTSUPP (a kind of VM that the module does not change, or replace_all
	 * with a guest_memfd slot).  With buffers for last dirty bitmaps: EINVAL or E2BIG (size),
	 * EFAULT (not writable), ENOMEM (RLIMIT_MEMLOCK), EOPNOTSUPP (dirty rings).
	 */
	report commit(const batch &entries, const commit_options &how = {})
	{
		return try_commit(entries, how).value();
	}
#endif

	/** commit() without exceptions. */
	result<report> try_commit(const batch &entries, const commit_options &how = {}) noexcept
	{
		memslot_commit arg{};

		arg.size = sizeof(arg);
		arg.entries = reinterpret_cast<std::uintptr_t>(entries.entries().data());
		arg.count = static_cast<std::uint32_t>(entries.size());
		arg.entry_size = sizeof(memslot_entry);
		arg.failed_index = MEMSLOT_NO_ENTRY;
		if (how.test_only)
			arg.flags |= MEMSLOT_COMMIT_TEST_ONLY;
		if (how.park)
			arg.flags |= MEMSLOT_COMMIT_PARK;
		if (how.replace_all.mask()) {
			arg.flags |= MEMSLOT_COMMIT_REPLACE_ALL;
			arg.replace_spaces = how.replace_all.mask();
		}
		if (!how.if_generation.empty()) {
			const auto missing = without_generation(entries, how);

			if (missing)
				return *missing;
			arg.flags |= MEMSLOT_COMMIT_IF_GENERATION;
			for (std::uint32_t i = 0; i < MEMSLOT_MAX_ADDRESS_SPACES; i++)
				arg.if_generation[i] =
					how.if_generation.of(i).value_or(never_a_generation);
		}
		if (::ioctl(fd_, MEMSLOT_IOC_COMMIT, &arg) < 0)
			return failure{
				.op = operation::commit,
				.errnum = errno,
				.reason = to_reason(arg.reason),
				.index = arg.failed_index,
			};
		return report{
			.strategy = to_strategy(arg.strategy),
			.park_cause = to_park_cause(arg.park_cause),
			.created = arg.created,
			.deleted = arg.deleted,
			.replaced = arg.replaced,
			.moved = arg.moved,
			.reflagged = arg.reflagged,
			.grace_periods = arg.grace_periods,
			.pages_kept = arg.pages_kept,
			.pages_remapped = arg.pages_remapped,
			.pages_removed = arg.pages_removed,
			.pages_added = arg.pages_added,
			.ns_fenced = std::chrono::nanoseconds(arg.ns_fenced),
			.generation = {arg.generation[0], arg.generation[1]},
			.tombstones = arg.tombstones,
			.late_root = arg.late_root,
		};
	}

#ifdef __cpp_exceptions
	/**
	 * The layout of an address space as it is at one moment.
	 *
	 * @param into gets it, on success; its room grows if there are more slots
	 * @param address_space 0 ... what bind() returned, minus 1
	 *
	 * Host addresses are null unless the VM is this process's own.
	 *
	 * Errors: ENOTCONN (not bound), EINVAL (no such address space), ENOMEM, ENOSPC (slots were
	 * added as fast as room for them), EOPNOTSUPP or ENOTTY (the module is too old).
	 */
	void query(layout &into, std::uint32_t address_space = 0) const
	{
		try_query(into, address_space).value();
	}

	/** The same as a new layout. */
	[[nodiscard]] layout query(std::uint32_t address_space = 0) const
	{
		layout now;

		query(now, address_space);
		return now;
	}
#endif

	/** query() without exceptions; fails with ENOMEM where that throws std::bad_alloc. */
	result<void> try_query(layout &into, std::uint32_t address_space = 0) const noexcept
	{
#ifdef __cpp_exceptions
		try {
			return query_into(into, address_space);
		} catch (const std::bad_alloc &) {
			return failure{.op = operation::query, .errnum = ENOMEM};
		}
#else
		return query_into(into, address_space);
#endif
	}

private:
	/* KVM's count up from 0, with the highest bit for one that is being made */
	static constexpr std::uint64_t never_a_generation = ~std::uint64_t{0};

	/* May throw std::bad_alloc */
	result<void> query_into(layout &into, std::uint32_t address_space) const
	{
		/* Each turn more slots would have to come than the last one left room for */
		for (unsigned int turns = 8;; turns--) {
			memslot_query arg{};

			arg.size = sizeof(arg);
			arg.entries = reinterpret_cast<std::uintptr_t>(into.entries_.data());
			arg.count = static_cast<std::uint32_t>(into.entries_.size());
			arg.entry_size = sizeof(memslot_entry);
			arg.address_space = address_space;
			if (::ioctl(fd_, MEMSLOT_IOC_QUERY, &arg) == 0) {
				into.assign(arg);
				return {};
			}
			if (errno != ENOSPC || !turns)
				return failure{
					.op = operation::query,
					.errnum = errno,
					.reason = to_reason(arg.reason),
				};
			into.reserve(std::size_t{arg.count} + arg.count / 8 + 8);
		}
	}

	/*
	 * What names an address space of which if_generation has no layout: it would be ESTALE, and
	 * still be after another query.
	 */
	static std::optional<failure> without_generation(const batch &entries,
							 const commit_options &how) noexcept
	{
		failure why{
			.op = operation::commit,
			.errnum = EINVAL,
			.reason = MEMSLOT_REASON_GENERATION,
		};

		for (std::uint32_t i = 0; i < MEMSLOT_MAX_ADDRESS_SPACES; i++)
			if (how.replace_all.mask() & 1U << i && !how.if_generation.of(i))
				return why;
		why.index = 0;
		for (const memslot_entry &entry : entries.entries()) {
			/* One that no VM has is the kernel's to refuse */
			if (entry.address_space < MEMSLOT_MAX_ADDRESS_SPACES &&
			    !how.if_generation.of(entry.address_space))
				return why;
			why.index++;
		}
		return std::nullopt;
	}

	int fd_ = -1;
};

} // namespace memslot
