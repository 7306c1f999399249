# Frames by hand, for pods with CAP_NET_RAW and nothing else.
import ipaddress, os, random, re, select, socket, struct, sys, time

def mac(text): return bytes.fromhex(text.replace(":", ""))
def packed(address): return ipaddress.ip_address(address).packed
def own_mac():
    import fcntl
    with socket.socket() as any:
        return fcntl.ioctl(any.fileno(), 0x8927, struct.pack("256s", b"eth0"))[18:24]
def gateway_mac(gateway): return b"\x0a\x58" + packed(gateway)

def sum16(data):
    if len(data) % 2: data += b"\0"
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16: total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF

def pseudo(src, dst, protocol, length):
    if ":" in src: return packed(src) + packed(dst) + struct.pack("!II", length, protocol)
    return packed(src) + packed(dst) + struct.pack("!BBH", 0, protocol, length)

def udp(src, dst, sport, dport, data):
    length = 8 + len(data)
    head = struct.pack("!HHHH", sport, dport, length, 0)
    check = sum16(pseudo(src, dst, 17, length) + head + data) or 0xFFFF
    return struct.pack("!HHHH", sport, dport, length, check) + data

def syn(src, dst, sport, dport):
    head = struct.pack("!HHIIBBHHH", sport, dport, 1000, 0, 5 << 4, 2, 65535, 0, 0)
    check = sum16(pseudo(src, dst, 6, 20) + head)
    return head[:16] + struct.pack("!H", check) + head[18:]

def ip(src, dst, protocol, payload, ident=7, fragment=0):
    if ":" in src:
        return struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64) + packed(src) + packed(dst) + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), ident, fragment, 64, protocol, 0)
    head += packed(src) + packed(dst)
    return head[:10] + struct.pack("!H", sum16(head)) + head[12:] + payload

def kind(address): return b"\x86\xdd" if ":" in address else b"\x08\x00"

def icmp6(src, dst, what, body):
    head = struct.pack("!BBH", what, 0, 0) + body
    return head[:2] + struct.pack("!H", sum16(pseudo(src, dst, 58, len(head)) + head)) + head[4:]

# A router's word that these addresses are on its link, for so many seconds (RFC 4861 §4.2, §4.6.2).
def advertise(addresses, seconds):
    raw, me = wire(), own_mac()
    for address in addresses:
        on_link = b"\3\4\x80\x80" + struct.pack("!III", seconds, seconds, 0) + packed(address)
        body = struct.pack("!BBHII", 64, 0, 0, 0, 0) + on_link
        advert = ip(link_local(me), "ff02::1", 58, icmp6(link_local(me), "ff02::1", 134, body))
        raw.send(mac("33:33:00:00:00:01") + me + b"\x86\xdd" + advert[:7] + b"\xff" + advert[8:])
    print("sent", len(addresses))

# An error: port unreachable, about this packet.
def complaint(src, dst, about):
    if ":" in src:
        head = struct.pack("!BBHI", 1, 4, 0, 0) + about
        check = sum16(pseudo(src, dst, 58, len(head)) + head)
        return ip(src, dst, 58, head[:2] + struct.pack("!H", check) + head[4:])
    head = struct.pack("!BBHI", 3, 3, 0, 0) + about
    return ip(src, dst, 1, head[:2] + struct.pack("!H", sum16(head)) + head[4:])

def wire(protocol=0x0003):
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol))
    raw.bind(("eth0", 0))
    return raw

# A word of ours, which no header has by chance; what could not be seen is not sent.
WORD = rb"[\w.:-]{3,}"
def mark(word):
    assert re.fullmatch(WORD, word.encode()), word
    return b"<" + word.encode() + b">"

# Prints every word of ours that comes in, until END does; on a busy machine the attack before that takes its time. Says
# that it has these addresses, to whoever asks.
def watch(seconds=300, claimed=()):
    raw, words, end = wire(), set(), time.time() + seconds
    print("ready", flush=True)
    while time.time() < end and b"END" not in words:
        if not select.select([raw], [], [], max(0, end - time.time()))[0]: break
        frame, address = raw.recvfrom(65535)
        if address[2] == socket.PACKET_OUTGOING: continue
        if frame[20] == 58 and frame[54] == 135 and frame[62:78] in map(packed, claimed):
            me, asks = own_mac(), str(ipaddress.ip_address(frame[22:38]))
            body = struct.pack("!I", 0x60000000) + frame[62:78] + b"\2\1" + me
            says = ip(link_local(me), asks, 58, icmp6(link_local(me), asks, 136, body))
            raw.send(frame[6:12] + me + b"\x86\xdd" + says[:7] + b"\xff" + says[8:])
        words.update(re.findall(b"<(" + WORD + b")>", frame))
    for word in sorted(words): print(word.decode("ascii", "replace"))

def say(to, port, word, sport=40000, length=0):
    out = socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET, socket.SOCK_DGRAM)
    out.bind(("", sport))
    out.sendto(mark(word) + b"." * length, (to, port))

def datagram(src, dst, word, dport=9001): return ip(src, dst, 17, udp(src, dst, 40000, dport, mark(word)))

# From addresses that are not ours: [(word, source, destination)].
def forge(gateway, cases):
    raw, me, to = wire(), own_mac(), gateway_mac(gateway)
    for word, src, dst in cases:
        inner = datagram(src, dst, word)
        raw.send(to + me + kind(src) + inner)
        # Tags: priority only, a network, two of them.
        raw.send(to + me + b"\x81\x00\x00\x00" + kind(src) + datagram(src, dst, word + "-tag0"))
        raw.send(to + me + b"\x81\x00\x00\x05" + kind(src) + datagram(src, dst, word + "-tag5"))
        raw.send(to + me + b"\x88\xa8\x00\x00\x81\x00\x00\x00" + kind(src) + datagram(src, dst, word + "-tags"))
        # To the bridge group's own address, which is not bridged.
        raw.send(mac("01:80:c2:00:00:0e") + me + kind(src) + datagram(src, dst, word + "-group"))
        # Broadcast.
        raw.send(b"\xff" * 6 + me + kind(src) + datagram(src, dst, word + "-all"))
        if ":" in src:
            mapped = "::ffff:" + "10.244.1.9"
            raw.send(to + me + kind(src) + datagram(mapped, dst, word + "-mapped"))
            continue
        whole = udp(src, dst, 40000, 9001, mark(word + "-part") + b"." * 64)
        raw.send(to + me + kind(src) + ip(src, dst, 17, whole[:40], 99, 0x2000))
        raw.send(to + me + kind(src) + ip(src, dst, 17, whole[40:], 99, 40 // 8))
    print("sent", len(cases))

# A packet with the request that the kernel fill in a checksum: so many bytes from the frame's start, over all that follows
# (virtio_net_hdr, packet(7) PACKET_VNET_HDR).
def filled_by(raw, place, frame): raw.send(struct.pack("=BBHHHH", 1, 0, 0, 0, place, 0) + frame)

def offloading():
    raw = wire()
    raw.setsockopt(263, 15, 1)
    return raw

# A datagram in two fragments, in which the sum over `source` or `port` and all behind it is just what is wanted there when
# they have been put together. IPv6 loses the 8 bytes of the fragment's header by that. `became`: where it is sent on to, whose
# address NAT adds to the sum in the datagram's own checksum (inet_proto_csum_replace4).
def misplace(to, src, dst, word, field, wanted, dport=9001, became=None):
    raw, me, six = offloading(), own_mac(), ":" in src
    data = struct.pack("!HHHH", 40000, dport, 0, 0) + mark(word) + b"." * (len(word) % 2) + b"." * 60
    data = data[:4] + struct.pack("!H", len(data) + 2) + data[6:]
    covered, place = {
        "source": (packed(src)[-2:] + packed(dst) + data, 36 if six else 28),
        "port": (struct.pack("!H", 9001) + data[4:], 56 if six else 36),
    }[field]
    if became: covered += packed(became) + bytes(byte ^ 255 for byte in packed(dst))
    data += struct.pack("!H", ((~wanted & 0xFFFF) - (~sum16(covered) & 0xFFFF)) % 0xFFFF)
    for at, more in ((0, 1), (48, 0)):
        part = data[at : at + 48] if more else data[at:]
        if six: packet = ip(src, dst, 44, struct.pack("!BBHI", 17, 0, at | more, 99) + part)
        else: packet = ip(src, dst, 17, part, 99, at // 8 | more << 13)
        filled_by(raw, place + 8 * six if more else 30, to + me + kind(src) + packet)
    print("sent", word)

# Checksums where they belong, and in the inner packet of a tunnel of the pod's own.
def place_well(gateway, src, dst, word):
    raw, me, to = offloading(), own_mac(), gateway_mac(gateway)
    at = 14 + (40 if ":" in src else 20)
    for end, offset in (("", 6), ("-inner", 30)):
        data = mark(word + end) + b"." * 40
        head = struct.pack("!HHHH", 40000, 9001, 8 + len(data), 0)
        frame = to + me + kind(src) + ip(src, dst, 17, head + data)
        start = at if offset == 6 else at + offset
        raw.send(struct.pack("=BBHHHH", 1, 0, 0, 0, start, offset if offset == 6 else 0) + frame)
    print("sent", word)

# Whether anybody answers a connection from this address; `seconds` of silence are none.
def connect(gateway, src, dst, port, seconds):
    raw, me, sport = wire(), own_mac(), random.randrange(20000, 60000)
    raw.send(gateway_mac(gateway) + me + kind(src) + ip(src, dst, 6, syn(src, dst, sport, port)))
    end = time.time() + seconds
    at = 54 if ":" in src else 34
    while time.time() < end:
        if not select.select([raw], [], [], max(0, end - time.time()))[0]: break
        frame, address = raw.recvfrom(65535)
        if address[2] == socket.PACKET_OUTGOING: continue
        if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\1" and frame[38:42] == packed(src)[:4]:
            raw.send(frame[6:12] + me + b"\x08\x06\0\1\x08\0\6\4\0\2" + me + packed(src) + frame[22:32])
        if frame[12:14] == kind(src) and frame[at : at + 4] == struct.pack("!HH", port, sport):
            print("answered" if frame[at + 13] & 18 == 18 else "refused")
            return
    print("silence")

# VXLAN by an ordinary socket: [(word, node, port, source, destination)].
def tunnel(cases):
    for word, node, port, src, dst in cases:
        out = socket.socket(socket.AF_INET6 if ":" in node else socket.AF_INET, socket.SOCK_DGRAM)
        for vtep in VTEPS:
            inner = mac(vtep) + mac("0e:70:00:00:00:01") + kind(src) + datagram(src, dst, word)
            try: out.sendto(b"\x08\0\0\0\0\0\1\0" + inner, (node, port))
            except OSError as error: print(word, error)
    print("sent", len(cases))

# What a host says of its addresses, for others'.
def claim(gateway, victims):
    raw, me, to = wire(), own_mac(), gateway_mac(gateway)
    for address, theirs in victims:
        # Frames from its MAC, so that the bridge learns a new port for it.
        raw.send(to + mac(theirs) + kind(address) + datagram(address, gateway, "claim") if "." in address
                 else to + mac(theirs) + kind(address) + datagram(address, "ff02::1", "claim"))
        if "." in address:
            for what in (b"\0\1", b"\0\2"):
                for whose in (me, mac(theirs)):
                    arp = b"\0\1\x08\0\6\4" + what + whose + packed(address) + to + packed(gateway)
                    raw.send(to + me + b"\x08\x06" + arp)
                    raw.send(b"\xff" * 6 + whose + b"\x08\x06" + arp)
        else:
            body = struct.pack("!I", 0x60000000) + packed(address) + b"\2\1" + me
            for src in (address, link_local(me)):
                raw.send(to + me + kind(address) + ip(src, "ff02::1", 58, icmp6(src, "ff02::1", 136, body))[:7] + b"\xff"
                         + ip(src, "ff02::1", 58, icmp6(src, "ff02::1", 136, body))[8:])
    print("sent", len(victims))

def link_local(me):
    return str(ipaddress.ip_address(b"\xfe\x80" + b"\0" * 6 + bytes([me[0] ^ 2]) + me[1:3] + b"\xff\xfe" + me[3:6]))

# Many addresses of hardware, and many questions for pods that are not there.
def exhaust(gateway, me, prefix, count):
    raw, to = wire(), gateway_mac(gateway)
    for n in range(count):
        raw.send(to + b"\x02\x11" + struct.pack("!I", n) + b"\x08\x00" + datagram(me, gateway, "flood"))
    for n in range(10, 250):
        dst = prefix + ("%x" % (4096 + n) if ":" in prefix else str(n))
        raw.send(to + own_mac() + kind(dst) + datagram(me, dst, "flood"))
    print("sent", count)

# Asks who has the gateway, in frames to the bridge group's own addresses: who answers. `claims`: as whom, by what MAC, and
# the word for it.
def group(gateway, claims):
    raw, me, heard = wire(), own_mac(), set()
    for word, hardware, address in claims:
        hardware = mac(hardware) if hardware else me
        for last in range(16):
            to = mac("01:80:c2:00:00:%02x" % last)
            if ":" in address:
                many = "ff02::1:ff" + ipaddress.ip_address(gateway).exploded[-7:]
                body = struct.pack("!I", 0) + packed(gateway) + b"\1\1" + hardware
                asks = ip(address, many, 58, icmp6(address, many, 135, body))
                asks = asks[:7] + b"\xff" + asks[8:]
            else:
                asks = b"\0\1\x08\0\6\4\0\1" + hardware + packed(address) + b"\0" * 6 + packed(gateway)
            raw.send(to + hardware + (kind(address) if ":" in address else b"\x08\x06") + asks)
        end = time.time() + 1
        while time.time() < end:
            if not select.select([raw], [], [], max(0, end - time.time()))[0]: break
            frame, whence = raw.recvfrom(65535)
            if whence[2] == socket.PACKET_OUTGOING: continue
            arp = frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\2"
            advert = frame[12:14] == b"\x86\xdd" and frame[20] == 58 and frame[54] == 136
            if arp or advert: heard.add("%s: %s" % (word, frame[6:12].hex(":")))
    for answer in sorted(heard): print(answer)

# A server whose peer gets one segment far out of the window, and then goes on.
def stray_server(port):
    seen = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
    listener = socket.socket(socket.AF_INET6)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind(("::", port))
    listener.listen()
    listener.settimeout(120)
    print("ready", flush=True)
    peer, address = listener.accept()
    peer.settimeout(120)
    peer.recv(100)
    ours, theirs = peer.getsockname()[0], address[0]
    ours, theirs = [text[7:] if text.startswith("::ffff:") else text for text in (ours, theirs)]
    at, place = (40, 8) if ":" in ours else (20, 12)
    width = len(packed(ours))
    sequence = acknowledged = None
    seen.setblocking(False)
    while True:
        try: data = seen.recv(2000)
        except BlockingIOError: break
        if data[place : place + 2 * width] != packed(theirs) + packed(ours): continue
        sport, dport, seq, ack = struct.unpack("!HHII", data[at : at + 12])
        if (sport, dport) == (address[1], port): sequence, acknowledged = ack, seq
    head = struct.pack("!HHIIBBHHH", port, address[1], (sequence + 100_000_000) & 0xFFFFFFFF, acknowledged, 5 << 4, 0x18, 500, 0, 0)
    check = sum16(pseudo(ours, theirs, 6, len(head) + 6) + head + b"beyond")
    segment = head[:16] + struct.pack("!H", check) + head[18:] + b"beyond"
    raw = socket.socket(socket.AF_INET6 if ":" in ours else socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    raw.sendto(ip(ours, theirs, 6, segment), (theirs, 0))
    # What the stray segment provokes comes before the answer to this.
    for word in (b"still ", b"fine"):
        peer.sendall(word)
        peer.recv(100)
    print("went on", flush=True)

def stray_client(host, port):
    peer = socket.create_connection((host, port), 5)
    peer.sendall(b"hello")
    heard = b""
    while b"fine" not in heard:
        data = peer.recv(100)
        if not data: break
        heard += data
        peer.sendall(b"go on")
    print(heard.decode())

# A server that goes on sending, over UDP and TCP, to everybody it ever heard, until somebody says END.
def talk(udp_port, tcp_port):
    out = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    listener = socket.socket(socket.AF_INET6)
    for each, port in ((out, udp_port), (listener, tcp_port)):
        each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        each.bind(("::", port))
        each.setblocking(False)
    listener.listen()
    peers, streams = set(), []
    print("ready", flush=True)
    end = time.time() + 600
    while time.time() < end:
        for each in select.select([out, listener], [], [], 0.02)[0]:
            if each is listener:
                streams.append(listener.accept()[0])
                streams[-1].setblocking(False)
            else:
                data, peer = out.recvfrom(100)
                if b"END" in data: return
                peers.add(peer)
        for peer in peers:
            try: out.sendto(b"more", peer)
            except OSError: pass
        for stream in list(streams):
            try: stream.send(b"more")
            except BlockingIOError: pass
            except OSError: streams.remove(stream)

# A client that asks once and listens: says when it hears nothing more, and when it hears again.
def hear(kind, host, port, sport):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    peer = socket.socket(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if kind == "udp": peer.bind(("", sport))
    peer.settimeout(5)
    peer.connect((host, port))
    peer.send(b"go on")
    assert peer.recv(10000)
    print("ready", flush=True)
    peer.settimeout(2)
    end = time.time() + 200
    while time.time() < end:
        try: peer.recv(10000)
        except TimeoutError:
            print("silence", flush=True)
            break
    else:
        print("went on", flush=True)
        return
    peer.settimeout(200)
    peer.recv(10000)
    print("again", flush=True)

# What comes of ours, and under which source.
def sources(seconds=300):
    raw, end, found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)), time.time() + seconds, set()
    print("ready", flush=True)
    while time.time() < end and not any(word == "END" for word, _ in found):
        if not select.select([raw], [], [], max(0, end - time.time()))[0]: break
        frame, address = raw.recvfrom(65535)
        if address[2] == socket.PACKET_OUTGOING: continue
        source = frame[22:38] if frame[12:14] == b"\x86\xdd" else frame[26:30]
        for word in re.findall(b"<(" + WORD + b")>", frame):
            found.add((word.decode(), str(ipaddress.ip_address(source))))
    for word, source in sorted(found): print(word, "from", source)

# From further addresses: [(word, source, destination, own MAC or another)].
def speak(gateway, cases):
    raw, to = wire(), gateway_mac(gateway)
    for word, src, dst, other in cases:
        raw.send(to + (mac(other) if other else own_mac()) + kind(src) + datagram(src, dst, word))
    print("sent", len(cases))

# Whether the gateway tells its hardware address to who asks from there.
def ask_gateway(gateway, src):
    raw, me = wire(0x0806), own_mac()
    raw.send(b"\xff" * 6 + me + b"\x08\x06\0\1\x08\0\6\4\0\1" + me + packed(src) + b"\0" * 6 + packed(gateway))
    end = time.time() + 2
    while time.time() < end:
        if not select.select([raw], [], [], max(0, end - time.time()))[0]: break
        frame, address = raw.recvfrom(2000)
        if address[2] != socket.PACKET_OUTGOING and frame[20:22] == b"\0\2" and frame[38:42] == packed(src):
            print("answered")
            return
    print("silence")
