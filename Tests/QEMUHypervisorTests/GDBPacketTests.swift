import TestSupport
import Testing

@testable import QEMUHypervisor

@Suite("Packets of the remote serial protocol") struct GDBPacketTests {
    static func take(_ text: String) -> (payload: String?, rest: String) {
        var input = Array(text.utf8)
        let payload = GDBPacket.take(from: &input)
        return (payload.map { String(decoding: $0, as: UTF8.self) }, String(decoding: input, as: UTF8.self))
    }

    @Test(
        "A packet is framed with the sum of its bytes, modulo 256",
        arguments: [
            ("", "$#00"), ("g", "$g#67"), ("vCont?", "$vCont?#49"),
            ("Z1,fffff8064a204000,1", "$Z1,fffff8064a204000,1#6b"),
        ])
    func frames(payload: String, framed: String) {
        let sum = payload.utf8.reduce(0 as UInt8) { $0 &+ $1 }
        #expect(String(decoding: GDBPacket.frame(payload), as: UTF8.self) == framed)
        let digits = String(sum, radix: 16)
        #expect(framed.hasSuffix("#" + (digits.count == 1 ? "0" + digits : digits)))
    }

    @Test("Whole packets are taken one by one, with the acknowledgements before them")
    func takes() {
        let first = Self.take("+$OK#9a+$E22#a9")
        #expect(first.payload == "OK" && first.rest == "+$E22#a9")
        let second = Self.take(first.rest)
        #expect(second.payload == "E22" && second.rest == "")
    }

    @Test(
        "What is not whole yet is left as it is",
        arguments: ["", "+", "+$", "$O", "$OK", "$OK#", "$OK#9", "#9a", "+-#00"])
    func truncated(text: String) {
        let result = Self.take(text)
        #expect(result.payload == nil && result.rest == text)
    }

    @Test("Each byte that arrives late completes the packet all the same")
    func piecemeal() {
        var input: [UInt8] = []
        var packets: [[UInt8]] = []
        for byte in "+$T05thread:02;#00$OK#9a".utf8 {
            input.append(byte)
            if let packet = GDBPacket.take(from: &input) { packets.append(packet) }
        }
        #expect(packets == [Array("T05thread:02;".utf8), Array("OK".utf8)])
        #expect(input.isEmpty)
    }

    @Test(
        "Escapes and run lengths are undone",
        arguments: [
            ("}\u{03}}\u{04}}]}\u{0a}", "#$}*"), ("0* ", "0000"), ("0*\"00", "00000000"), ("a*!b", "aaaaab"),
            ("x", "x"),
        ])
    func unescapes(text: String, expected: String) {
        #expect(GDBPacket.unescape(Array(text.utf8)[...]) == Array(expected.utf8))
    }

    @Test(
        "An escape or run length at the end, a run of nothing, and a count below 29 stand for themselves",
        arguments: [
            ([0x41, 0x7d], [0x41, 0x7d]), ([0x41, 0x2a], [0x41, 0x2a]), ([0x2a, 0x20], [0x2a, 0x20]),
            ([0x41, 0x2a, 0x1c], [0x41, 0x2a, 0x1c]), ([0x41, 0x2a, 0x1d], [0x41]),
        ] as [([UInt8], [UInt8])])
    func degenerate(bytes: [UInt8], expected: [UInt8]) {
        #expect(GDBPacket.unescape(bytes[...]) == expected)
    }

    @Test("Hexadecimal digits turn into the bytes they were made of")
    func hexadecimal() {
        let bytes = [UInt8](0...255)
        let text = GDBPacket.hex(bytes)
        #expect(
            text.count == 512 && text.prefix(4) == Array("0001".utf8)[...] && text.suffix(2) == Array("ff".utf8)[...])
        #expect(GDBPacket.bytes(fromHex: text) == bytes)
        #expect(GDBPacket.bytes(fromHex: Array("AbCdEf09".utf8)) == [0xab, 0xcd, 0xef, 0x09])
        #expect(GDBPacket.bytes(fromHex: []) == [])
    }

    @Test("What is no pairs of digits is no bytes", arguments: ["0", "0g", "xx", "+1", " 1", "00000", "0x00", "E22"])
    func noHexadecimal(text: String) {
        #expect(GDBPacket.bytes(fromHex: Array(text.utf8)) == nil)
    }

    @Test("Random bytes are taken in without harm, and every framed packet among them is whole")
    func random() {
        var generator = SeededGenerator(seed: 7)
        var taken = 0
        for _ in 0..<2000 {
            var input = (0..<Int.random(in: 0...64, using: &generator)).map { _ -> UInt8 in
                let special = Array("$#}*+-".utf8)
                return Bool.random(using: &generator)
                    ? special.randomElement(using: &generator)! : .random(in: 0...255, using: &generator)
            }
            let length = input.count
            while let packet = GDBPacket.take(from: &input) {
                _ = GDBStopReply(packet)
                taken += 1
            }
            #expect(input.count <= length)
        }
        #expect(taken > 500)
    }
}

@Suite("Stop replies") struct GDBStopReplyTests {
    @Test(
        "Each form that QEMU sends is told from the others",
        arguments: [
            ("T05thread:01;", .trap(thread: 1, watch: nil)),
            ("T05thread:1f;", .trap(thread: 31, watch: nil)),
            ("T05thread:02;awatch:ffffb80000028f08;", .trap(thread: 2, watch: 0xffff_b800_0002_8f08)),
            ("T05thread:02;watch:10;", .trap(thread: 2, watch: 0x10)),
            ("T05thread:02;rwatch:10;", .trap(thread: 2, watch: 0x10)),
            ("T05", .trap(thread: 1, watch: nil)),
            ("T02thread:01;", .interrupted),
            ("T03thread:01;", .poweredOff),
            ("W00", .exited), ("X09", .exited),
        ] as [(String, GDBStopReply)])
    func parses(text: String, reply: GDBStopReply) {
        #expect(GDBStopReply(Array(text.utf8)) == reply)
    }

    @Test(
        "Answers to questions are no stop replies",
        arguments: [
            "", "OK", "E22", "1", "m01,02", "l", "vCont;c;C;s;S", "0011223344", "T", "Tzz",
        ])
    func others(text: String) {
        #expect(GDBStopReply(Array(text.utf8)) == nil)
    }
}
