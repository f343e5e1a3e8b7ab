/// Looks through a function's body for branches to certain addresses of it.
///
/// Control is followed from the function's start, within the bytes given. Where an indirect jump leads (a switch's
/// table) cannot be seen by decoding, and what lies outside of the bytes is not looked at.
struct InwardBranches {
    private let code: [UInt8]
    private let address: UInt64
    private let mode: DecodingMode

    init(in code: [UInt8], at address: UInt64, mode: DecodingMode) {
        self.code = code
        self.address = address
        self.mode = mode
    }

    /// The first branch into `range` of an instruction that does not itself lie in `passedOver`.
    func first(
        into range: Range<UInt64>, passingOver passedOver: Range<UInt64>
    ) -> (from: UInt64, to: UInt64)? {
        let decoder = InstructionDecoder(mode: mode)
        var seen = [Bool](repeating: false, count: code.count)
        var open = [0]
        var found: (from: UInt64, to: UInt64)?
        while let start = open.popLast() {
            var offset = start
            while offset < code.count, !seen[offset] {
                seen[offset] = true
                guard let instruction = decoder.decode(code[offset...], at: address &+ UInt64(offset)) else { break }
                if let target = instruction.relativeTarget {
                    if range.contains(target), !passedOver.contains(instruction.address),
                        instruction.address < found?.from ?? .max
                    {
                        found = (instruction.address, target)
                    }
                    let distance = target &- address
                    if distance < UInt64(code.count), !instruction.isCall { open.append(Int(distance)) }
                }
                guard instruction.fallsThrough else { break }
                offset += Int(instruction.length)
            }
        }
        return found
    }
}
