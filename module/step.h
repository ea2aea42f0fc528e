/* SPDX-License-Identifier: GPL-2.0 */
/* The steps of commit.c, in the order in which a commit takes them. */
#ifndef MEMSLOT_STEP_H
#define MEMSLOT_STEP_H

enum memslot_step {
	STEP_PARK,
	STEP_PLAN,
	STEP_PREPARE,
	STEP_BUILD,
	STEP_FENCE,
	STEP_ZAP,
	STEP_PUBLISH,
	STEP_WAIT,
	STEP_UPDATED,
	STEP_UNFENCE,
	STEP_MIRROR,
	STEP_FINISH,
};

#endif /* MEMSLOT_STEP_H */
