/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The steps of a commit, in the order in which commit.c takes them.  A step has one
 * name: the function of commit.c that takes it, the trace event memslot_commit_step,
 * the table in README.md and the model in tests/model use it.
 */
#ifndef MEMSLOT_STEP_H
#define MEMSLOT_STEP_H

/*
 * X(constant, name), and LAST() for the last one.  Only a commit that parks has
 * "park"; only one with tombstones has "republish" and "rewait".
 */
#define MEMSLOT_STEPS(X, LAST)		\
	X(STEP_PARK, park)		\
	X(STEP_PLAN, plan)		\
	X(STEP_PREPARE, prepare)	\
	X(STEP_BUILD, build)		\
	X(STEP_FENCE, fence)		\
	X(STEP_ZAP, zap)		\
	X(STEP_PUBLISH, publish)	\
	X(STEP_WAIT, wait)		\
	X(STEP_UNFENCE, unfence)	\
	X(STEP_MIRROR, mirror)		\
	X(STEP_REPUBLISH, republish)	\
	X(STEP_REWAIT, rewait)		\
	X(STEP_UPDATE, update)		\
	LAST(STEP_FINISH, finish)

#define MEMSLOT_STEP_CONSTANT(constant, name) constant,
enum memslot_step { MEMSLOT_STEPS(MEMSLOT_STEP_CONSTANT, MEMSLOT_STEP_CONSTANT) };
#undef MEMSLOT_STEP_CONSTANT

#endif /* MEMSLOT_STEP_H */
