// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// At the node's end of a pod's veth, and at the node's own links, before anything has read the frame: whether the kernel would
// write a checksum where there is none.
//
//   pod: packet socket, PACKET_VNET_HDR             guards read the frame         on the way out
//   ┌──────┬─────────┬─────┬─────────┐              as it is now                  (ip_do_fragment, a NIC)
//   │ MAC  │ IP from │ UDP │ payload │──────────────────────────────────────────> skb_checksum_help() writes
//   └──────┴────^────┴──^──┴─────────┘                                            16 bits at csum_start + csum_offset
//               any place that the pod names
//
// A frame whose checksum is to be filled in (CHECKSUM_PARTIAL, linux/skbuff.h) is good where the place is the checksum of
// its own TCP, UDP, SCTP or DCCP header, or behind a UDP header or that of a protocol that nobody here looks into, as tunnels
// of pods have it. A fragment has none: whoever cuts a packet fills its checksum in before (ip_do_fragment, ip6_fragment).
//
// A link between virtual machines or namespaces hands such a frame on as it is, so a machine outside can do it, too.
//
//   program           where             what is not good
//   plumb_checksums   pods' veths       is marked and gets a VLAN tag, with which the guard of the bridge drops and counts it
//   plumb_uplink      the node's links  is dropped and counted here: no rule of the bridge sees it

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define SECTION(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))

// linux/bpf.h: enum bpf_func_id.
static long (*const bpf_skb_vlan_push)(void *skb, u16 protocol, u16 tci) = (void *)18;
static long (*const bpf_skb_load_bytes)(const void *skb, u32 offset, void *to, u32 length) = (void *)26;
static long (*const bpf_probe_read_kernel)(void *to, u32 size, const void *from) = (void *)113;

// What is read of the kernel's own struct, at the offsets that its BTF gives. There `ip_summed` must come first and
// `mac_header` last, or the verifier refuses the program.
struct sk_buff {
	u8 ip_summed : 2;
	u16 csum_start;
	u16 csum_offset;
	u16 mac_header;
} __attribute__((preserve_access_index));

// linux/bpf.h, as far as it is needed.
struct __sk_buff {
	u32 len;
	u32 pkt_type;
	u32 mark;
	u32 queue_mapping;
	u32 protocol;
};

enum { CHECKSUM_PARTIAL = 3 };               // linux/skbuff.h
enum { TC_ACT_UNSPEC = -1, TC_ACT_SHOT = 2 }; // linux/pkt_cls.h
enum { ETHERNET = 14, IPV4 = 0x0800, IPV6 = 0x86dd, VLAN = 0x8100, QINQ = 0x88a8, IPV6_HEADER = 40 };
enum { HOP_BY_HOP = 0, TCP = 6, UDP = 17, DCCP = 33, ROUTING = 43, DESTINATION = 60, SCTP = 132, UDP_LITE = 136 };
enum { ICMP = 1, IGMP = 2, FRAGMENT = 44, AUTHENTICATION = 51, ICMPV6 = 58 };
enum { MOST_EXTENSIONS = 8, MOST_TAGS = 2, LEAST_INNER = 20 };

// compile::guard::ports has both.
enum { MARK = 0x706c6d62, RESERVED_VID = 0xfff };

// Both in bytes from the frame's start.
struct place {
	u32 start;
	u32 at;
};

// What plumb_uplink has dropped. The section is a map with one value, which the agent reads.
u64 plumb_dropped;

#define FIELD(field, what) __builtin_preserve_field_info(field, what)
enum { BYTE_OFFSET = 0, LSHIFT_U64 = 4, RSHIFT_U64 = 5 };

// More than the kernel's struct has from the first to the last of these (about 60 bytes). One call for all of it: a call costs
// more than copying the rest.
enum { MOST = 128 };

// `ip_summed` is in the first byte of the copy.
INLINE u32 summed(const u8 *copy)
{
	const struct sk_buff *skb = 0;
	u64 value = *copy;
	value <<= FIELD(skb->ip_summed, LSHIFT_U64);
	return value >> FIELD(skb->ip_summed, RSHIFT_U64);
}

// The verifier allows additions to the copy's address and no subtractions, so the compiler must not see that `at` is a
// difference.
INLINE u32 word(const u8 *copy, u32 at)
{
	asm volatile("" : "+r"(at));
	return *(const u16 *)(copy + at);
}

// `header`: where that of the transport begins.
INLINE int is_good(u8 protocol, u32 header, struct place place)
{
	switch (protocol) {
	case TCP:
		return place.start == header && place.at == header + 16;
	case UDP:
	case UDP_LITE:
		return (place.start == header && place.at == header + 6) ||
		       (place.start >= header + 8 && place.at >= header + 8);
	case SCTP:
		return place.start == header && place.at == header + 8;
	case DCCP:
		return place.start == header && place.at == header + 6;
	case ICMP:
	case IGMP:
	case FRAGMENT:
	case AUTHENTICATION:
	case ICMPV6:
		return 0;
	default:
		return place.start >= header && place.at >= header + LEAST_INNER;
	}
}

// `network`: where the IP header begins.
INLINE int is_good_ipv4(struct __sk_buff *ctx, struct place place, u32 network)
{
	u8 ip[20];
	if (bpf_skb_load_bytes(ctx, network, ip, sizeof(ip)))
		return 0;
	// More fragments, or an offset.
	if ((ip[6] & 0x3f) | ip[7])
		return 0;
	return is_good(ip[9], network + (ip[0] & 0xf) * 4, place);
}

INLINE int is_good_ipv6(struct __sk_buff *ctx, struct place place, u32 network)
{
	u32 header = network + IPV6_HEADER;
	u8 next[2];
	if (bpf_skb_load_bytes(ctx, network + 6, &next, 1))
		return 0;
#pragma unroll
	for (int i = 0; i <= MOST_EXTENSIONS; i++) {
		u8 protocol = next[0];
		if (protocol != HOP_BY_HOP && protocol != ROUTING && protocol != DESTINATION)
			return is_good(protocol, header, place);
		if (bpf_skb_load_bytes(ctx, header, next, sizeof(next)))
			return 0;
		header += (next[1] + 1) * 8;
	}
	return 0;
}

enum verdict { GOOD, MISPLACED, NOT_IP, UNREADABLE };

INLINE enum verdict judge(struct __sk_buff *ctx)
{
	u64 copy[MOST / 8];
	const u8 *bytes = (const void *)copy;
	const struct sk_buff *skb = 0;
	u32 first = FIELD(skb->ip_summed, BYTE_OFFSET);
	u32 mac = FIELD(skb->mac_header, BYTE_OFFSET) - first;
	if (bpf_probe_read_kernel(copy, mac + sizeof(skb->mac_header), (const u8 *)ctx + first))
		return UNREADABLE;
	if (summed(bytes) != CHECKSUM_PARTIAL)
		return GOOD;
	u32 start = word(bytes, FIELD(skb->csum_start, BYTE_OFFSET) - first) - word(bytes, mac);
	u32 offset = word(bytes, FIELD(skb->csum_offset, BYTE_OFFSET) - first);
	struct place place = { .start = start, .at = start + offset };
	u32 network = ETHERNET;
	u16 protocol = ctx->protocol;
	// The outermost tag is out of the frame by now (skb_vlan_untag, __netif_receive_skb_core).
	for (int i = 0; i < MOST_TAGS; i++) {
		if (protocol != __builtin_bswap16(VLAN) && protocol != __builtin_bswap16(QINQ))
			break;
		if (bpf_skb_load_bytes(ctx, network + 2, &protocol, sizeof(protocol)))
			return UNREADABLE;
		network += 4;
	}
	if (protocol == __builtin_bswap16(IPV4))
		return is_good_ipv4(ctx, place, network) ? GOOD : MISPLACED;
	if (protocol == __builtin_bswap16(IPV6))
		return is_good_ipv6(ctx, place, network) ? GOOD : MISPLACED;
	return NOT_IP;
}

SECTION("classifier") int plumb_checksums(struct __sk_buff *ctx)
{
	switch (judge(ctx)) {
	case GOOD:
		return TC_ACT_UNSPEC;
	case MISPLACED:
	case NOT_IP:
		ctx->mark = MARK;
		return bpf_skb_vlan_push(ctx, __builtin_bswap16(VLAN), RESERVED_VID) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
	default:
		return TC_ACT_SHOT;
	}
}

SECTION("classifier") int plumb_uplink(struct __sk_buff *ctx)
{
	enum verdict verdict = judge(ctx);
	// What else the machine carries by its links is not the pods' (MPLS, PPPoE).
	if (verdict == GOOD || verdict == NOT_IP)
		return TC_ACT_UNSPEC;
	__sync_fetch_and_add(&plumb_dropped, 1);
	return TC_ACT_SHOT;
}

// What reads the kernel's memory must say that it may be linked with it.
char the_license[] SECTION("license") = "GPL";
