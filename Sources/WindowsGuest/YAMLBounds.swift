/// What a text must not have for a YAML parser to take it in bounded time and stack.
///
/// Parsers go down one call for each level of nesting, and an alias can stand for a structure of aliases: a small
/// text can be deep or, unfolded, endless. A pattern file has four levels and no aliases.
enum YAMLBounds {
    static let maximumDepth = 64
    /// Of what a line starts with: spaces, and the dashes, colons and question marks that open a level each.
    static let maximumIndentation = 128

    /// Why the text is not to be parsed; nil where nothing speaks against it.
    static func violation(in text: String) -> String? {
        var depth = 0
        var indentation = 0
        var isIndentation = true
        var isComment = false
        for byte in text.utf8 {
            if byte == UInt8(ascii: "\n") || byte == UInt8(ascii: "\r") {
                (indentation, isIndentation, isComment) = (0, true, false)
                continue
            }
            if isComment { continue }
            switch byte {
            case UInt8(ascii: " "), UInt8(ascii: "-"), UInt8(ascii: "?"), UInt8(ascii: ":"), UInt8(ascii: "\t"):
                if isIndentation { indentation += 1 }
                if indentation > maximumIndentation { return "a line is indented too far" }
                continue
            case UInt8(ascii: "#"): isComment = true
            case UInt8(ascii: "["), UInt8(ascii: "{"):
                depth += 1
                if depth > maximumDepth { return "it is nested too deep" }
            case UInt8(ascii: "]"), UInt8(ascii: "}"): depth = max(0, depth - 1)
            case UInt8(ascii: "&"), UInt8(ascii: "*"): return "it has anchors or aliases, which no pattern needs"
            default: break
            }
            isIndentation = false
        }
        return nil
    }
}
