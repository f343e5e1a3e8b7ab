import Foundation

@testable import QEMUHypervisor

/// JSON from bytes, for the tests.
enum JSONText {
    static func decode(_ bytes: [UInt8]) -> JSONValue? { try? JSONDecoder().decode(JSONValue.self, from: Data(bytes)) }
    static func decode(_ text: String) -> JSONValue? { decode(Array(text.utf8)) }
    static func encode(_ value: JSONValue) throws -> JSONValue? { decode([UInt8](try JSONEncoder().encode(value))) }
}
