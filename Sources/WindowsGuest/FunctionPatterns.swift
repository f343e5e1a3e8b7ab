import Foundation
import GuestMemory
import Yams

/// Byte patterns by which one function of the kernel is known in some builds.
///
/// The format is that of the CAMI function files (Bitdefender's introspection updates, `functions/*.yaml`):
/// a mapping tagged `!intro_update_win_function` with name, guest64 and patterns; each pattern with
/// section_hint, min_ver, max_ver and rows of bytes, 0x100 standing for any byte.
public struct FunctionPatterns: Hashable, Sendable {
    public struct Pattern: Hashable, Sendable {
        /// The section where the function is expected.
        public var sectionHint: String?
        /// The first and last build it is good for.
        public var builds: ClosedRange<UInt32>
        public var bytes: BytePattern
    }

    public static let tag = "!intro_update_win_function"
    /// In bytes; the files there are have under 100 KiB.
    public static let maximumFileSize = 4 << 20

    /// The files there are have up to seven.
    public static let maximumPatterns = 1024

    public var name: String
    /// For 64-bit kernels.
    public var is64Bit: Bool
    public var patterns: [Pattern]
    /// Patterns of the file that could not match anything, and why: for the user, they are not used.
    public var rejected: [String]

    /// Those that are good for a build.
    public func patterns(forBuild build: UInt32) -> [Pattern] { patterns.filter { $0.builds.contains(build) } }

    /// Parses the text of one file.
    ///
    /// A single pattern whose elements are no bytes is set aside (the published files have one such slip); a file
    /// of another structure is refused.
    /// - Parameter source: what to call it in errors.
    public init(yaml: String, source: String) throws(PatternFileError) {
        if let problem = YAMLBounds.violation(in: yaml) { throw .init(source: source, problem: problem) }
        let root: Node?
        do {
            root = try Yams.compose(yaml: yaml)
        } catch {
            throw .init(source: source, problem: "it is no YAML: \(error)")
        }
        func problem(_ text: String) -> PatternFileError { .init(source: source, problem: text) }
        guard let root, root.tag.rawValue == Self.tag, let mapping = root.mapping else {
            throw problem("it has no \(Self.tag)")
        }
        guard let name = mapping["name"]?.string, !name.isEmpty else { throw problem("the function has no name") }
        guard let is64Bit = mapping["guest64"]?.bool else { throw problem("guest64 is neither True nor False") }
        guard let list = mapping["patterns"]?.sequence, !list.isEmpty else { throw problem("there are no patterns") }
        guard list.count <= Self.maximumPatterns else { throw problem("there are \(list.count) patterns") }
        self.name = name
        self.is64Bit = is64Bit
        patterns = []
        rejected = []
        for (index, node) in list.enumerated() {
            let what = "pattern \(index) of \(name)"
            let (builds, elements) = try Self.contents(node, what, source)
            do throws(BytePattern.Invalid) {
                let bytes = try BytePattern(elements)
                patterns.append(Pattern(sectionHint: node["section_hint"]?.string, builds: builds, bytes: bytes))
            } catch {
                rejected.append("\(what): \(error)")
            }
        }
    }

    private static func contents(
        _ node: Node, _ what: String, _ source: String
    ) throws(PatternFileError) -> (ClosedRange<UInt32>, [UInt16]) {
        func problem(_ text: String) -> PatternFileError { .init(source: source, problem: "\(what): \(text)") }
        guard let first = build(node["min_ver"]), let last = build(node["max_ver"]), first <= last else {
            throw problem("min_ver and max_ver are no range of builds")
        }
        guard let rows = node["pattern"]?["code"]?.sequence else { throw problem("it has no code") }
        var elements: [UInt16] = []
        for row in rows {
            guard let row = row.sequence else { throw problem("a row of its code is no list") }
            for element in row {
                guard let value = element.int, let byte = UInt16(exactly: value) else {
                    throw problem("its code holds something that is no number")
                }
                elements.append(byte)
            }
        }
        return (first...last, elements)
    }

    /// A build number, or one of the names that stand for "from the first" and "to the last".
    private static func build(_ node: Node?) -> UInt32? {
        switch node?.string {
        case "WIN_PATTERN_MIN_VERSION_ANY": 0
        case "WIN_PATTERN_MAX_VERSION_ANY": .max
        default: node?.int.flatMap { UInt32(exactly: $0) }
        }
    }

    /// Reads one file, or all `.yaml` files of a folder that hold function patterns, in order of their names.
    /// - Throws: where a file cannot be read or parsed; files in a folder that hold other things are passed over.
    public static func load(path: String) throws(PatternFileError) -> [FunctionPatterns] {
        var isFolder: ObjCBool = false
        guard FileManager.default.fileExists(atPath: path, isDirectory: &isFolder) else {
            throw .init(source: path, problem: "there is no such file or folder")
        }
        guard isFolder.boolValue else { return [try Self(yaml: try text(of: path), source: path)] }
        let names = ((try? FileManager.default.contentsOfDirectory(atPath: path)) ?? []).sorted()
        var result: [FunctionPatterns] = []
        for name in names where name.hasSuffix(".yaml") {
            let file = path + "/" + name
            let text = try text(of: file)
            if text.contains(Self.tag) { result.append(try Self(yaml: text, source: file)) }
        }
        return result
    }

    private static func text(of path: String) throws(PatternFileError) -> String {
        guard let handle = FileHandle(forReadingAtPath: path),
            let data = try? handle.read(upToCount: maximumFileSize + 1)
        else { throw .init(source: path, problem: "it cannot be read") }
        guard data.count <= maximumFileSize else {
            throw .init(source: path, problem: "it is larger than \(maximumFileSize) bytes")
        }
        return String(decoding: data, as: UTF8.self)
    }
}

/// Why a file of byte patterns cannot be used.
public struct PatternFileError: Error, Hashable, Sendable, CustomStringConvertible {
    /// The file.
    public var source: String
    public var problem: String

    public var description: String { "the pattern file \(source) cannot be used: \(problem)" }
}
