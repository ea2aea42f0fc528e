/* SPDX-License-Identifier: GPL-2.0 */
#ifndef MEMSLOT_DEVICE_H
#define MEMSLOT_DEVICE_H

int memslot_device_register(void);
void memslot_device_unregister(void);

#endif /* MEMSLOT_DEVICE_H */
