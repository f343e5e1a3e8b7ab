import Foundation

/// Files outside the repository that some tests read.
public enum SharedData {
    /// Where the CAMI function files are, if they are.
    public static let functions: String? = {
        let root: String
        if let override = ProcessInfo.processInfo.environment["VIGIL_SHARED_DATA"] {
            root = override
        } else {
            let package = URL(fileURLWithPath: #filePath).resolvingSymlinksInPath()
                .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
            root = package.appendingPathComponent("../shared/data").standardizedFileURL.path
        }
        let path = root + "/cami/functions"
        if FileManager.default.fileExists(atPath: path) { return path }
        print("SKIPPED: tests of the CAMI function patterns, \(path) is absent (VIGIL_SHARED_DATA may name it)")
        return nil
    }()
}
