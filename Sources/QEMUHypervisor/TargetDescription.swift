import Foundation
import FoundationXML

/// Where each register stands in the stub's `g` packet, from the target description that it sends.
/// Format: "Debugging with GDB", appendix G.
struct TargetDescription: Equatable, Sendable {
    struct Register: Equatable, Sendable {
        var number: Int
        /// Offset in the `g` packet, in bytes.
        var offset: Int
        /// In bytes.
        var size: Int
    }

    private(set) var registers: [String: Register] = [:]

    subscript(_ name: String) -> Register? { registers[name] }

    /// The files that a target description includes, found without parsing it.
    static func includes(in document: [UInt8]) -> [String] {
        String(decoding: document, as: UTF8.self).split(separator: "<xi:include href=\"").dropFirst().compactMap {
            rest in
            rest.firstIndex(of: "\"").map { String(rest[..<$0]) }
        }
    }

    /// - Parameter read: returns an annex of the description by its name.
    init(read: (String) throws -> [UInt8]) throws {
        var offset = 0
        var number = 0
        try append("target.xml", read: read, depth: 0, number: &number, offset: &offset)
    }

    private mutating func append(
        _ annex: String, read: (String) throws -> [UInt8], depth: Int, number: inout Int, offset: inout Int
    ) throws {
        // target.xml includes the files that hold the registers; those include nothing.
        guard depth < 3 else { return }
        let items = DescriptionParser.items(of: Data(try read(annex)))
        for item in items {
            switch item {
            case .include(let name):
                try append(name, read: read, depth: depth + 1, number: &number, offset: &offset)
            case .register(let name, let bits, let explicitNumber):
                number = explicitNumber ?? number
                registers[name] = Register(number: number, offset: offset, size: bits / 8)
                number &+= 1
                offset += bits / 8
            }
        }
    }
}

/// The two elements of a target description that matter here, in order.
private final class DescriptionParser: NSObject, XMLParserDelegate {
    enum Item {
        case include(String)
        case register(name: String, bits: Int, number: Int?)
    }

    private var items: [Item] = []

    static func items(of document: Data) -> [Item] {
        let parser = XMLParser(data: document)
        let delegate = DescriptionParser()
        parser.delegate = delegate
        parser.shouldResolveExternalEntities = false
        _ = parser.parse()
        return delegate.items
    }

    func parser(
        _ parser: XMLParser, didStartElement name: String, namespaceURI: String?, qualifiedName: String?,
        attributes: [String: String]
    ) {
        if name == "xi:include" || qualifiedName == "xi:include", let reference = attributes["href"] {
            items.append(.include(reference))
        } else if name == "reg", let register = attributes["name"],
            let bits = attributes["bitsize"].flatMap({ Int($0) }),
            (8...4096).contains(bits)
        {
            items.append(.register(name: register, bits: bits, number: attributes["regnum"].flatMap { Int($0) }))
        }
    }
}
