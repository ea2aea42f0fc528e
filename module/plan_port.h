/* SPDX-License-Identifier: GPL-2.0 */
/* The few things that plan.c needs from its surroundings: kernel or host. */
#ifndef MEMSLOT_PLAN_PORT_H
#define MEMSLOT_PLAN_PORT_H

#ifdef __KERNEL__

#include <linux/errno.h>
#include <linux/kernel.h>
#include <linux/minmax.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/sort.h>
#include <linux/string.h>
#include <linux/types.h>

#define PLAN_PAGE_SHIFT PAGE_SHIFT

static inline void *plan_alloc(size_t bytes)
{
	return kvmalloc(bytes, GFP_KERNEL_ACCOUNT);
}

static inline void plan_release(void *memory)
{
	kvfree(memory);
}

/* In loops that a caller can make long */
static inline void plan_pause(void)
{
	cond_resched();
}

static inline void plan_sort(void *array, size_t n, size_t size,
			     int (*cmp)(const void *, const void *))
{
	sort(array, n, size, cmp, NULL);
}

#else /* unit tests and fuzzing on the host */

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint32_t u32;
typedef uint64_t u64;

#define PLAN_PAGE_SHIFT 12

static inline void *plan_alloc(size_t bytes)
{
	return malloc(bytes);
}

static inline void plan_release(void *memory)
{
	free(memory);
}

static inline void plan_pause(void)
{
}

static inline void plan_sort(void *array, size_t n, size_t size,
			     int (*cmp)(const void *, const void *))
{
	qsort(array, n, size, cmp);
}

#define ARRAY_SIZE(array) (sizeof(array) / sizeof((array)[0]))
#define min(a, b) ({ __typeof__(a) _a = (a); __typeof__(b) _b = (b); _a < _b ? _a : _b; })
#define max(a, b) ({ __typeof__(a) _a = (a); __typeof__(b) _b = (b); _a > _b ? _a : _b; })

#endif

#endif /* MEMSLOT_PLAN_PORT_H */
