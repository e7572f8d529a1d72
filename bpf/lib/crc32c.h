/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* CRC32c (RFC 9260, appendix A), as far as a packet whose ports change needs it: the sum is linear, so the difference of four bytes at the
 * start, carried over the bytes behind them, is the difference of the sums. The packet's bytes are not read. */
#pragma once

#include "map.h"

#define CRC32C_POLYNOMIAL 0x82f63b78U /* lowest power in the highest bit, as all numbers here */

/* x^(8 * 2^k) modulo the polynomial. */
static const __u32 crc32c_powers[16] = {
	0x00800000, 0x00008000, 0x82f63b78, 0x6ea2d55c, 0x18b8ea18, 0x510ac59a, 0xb82be955, 0xb8fdb1e7,
	0x88e56f72, 0x74c360a4, 0xe4172b16, 0x0d65762a, 0x35d73a62, 0x28461564, 0xbf455269, 0xe2ea32dc,
};

static __always_inline __u32 crc32c_multiply(__u32 a, __u32 b)
{
	__u32 product = 0;

	for (int i = 0; i < 32; i++) {
		product ^= b & -(a >> 31);
		a <<= 1;
		b = b >> 1 ^ (CRC32C_POLYNOMIAL & -(b & 1));
	}
	return product;
}

/* What a difference in the first four bytes of a message of `length` bytes (at most 65535) does to its sum, both in the order of the
 * bytes in memory. */
STAGE __u32 crc32c_difference(__u32 first, __u32 length)
{
	for (__u32 k = 0; k < 16; k++)
		if (length >> k & 1)
			first = crc32c_multiply(crc32c_powers[k], first);
	return first;
}
