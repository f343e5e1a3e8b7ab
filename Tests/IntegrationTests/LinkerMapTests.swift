import BundledGuest
import Foundation
import GuestMemory
import Introspection
import QEMUHypervisor
import Testing
import WindowsGuest

extension Integration {
    /// What is derived from a running kernel, held against what its linker and its headers say.
    @Suite(.serialized)
    struct LinkerMapTests {
        struct Kernel: CustomTestStringConvertible, Sendable {
            var optimisation: GuestConfiguration.Optimisation
            var reentry: GuestConfiguration.Reentry
            var testDescription: String { "\(optimisation.rawValue)-\(reentry.rawValue)" }
        }

        static let kernels = GuestConfiguration.Optimisation.allCases.flatMap { optimisation in
            GuestConfiguration.Reentry.allCases.map { Kernel(optimisation: optimisation, reentry: $0) }
        }

        /// Where the linker put each symbol, from the image's start, in bytes. Without the decoration of x86: a leading
        /// underscore and, behind an at sign, the size of a function's arguments.
        private static func symbols(_ variant: String) throws -> [String: UInt64] {
            let text = try String(
                contentsOfFile: BundledGuestMachine.artifact("ntoskrnl-\(variant).map"), encoding: .utf8)
            var base: UInt64 = 0
            var symbols: [String: UInt64] = [:]
            for line in text.split(separator: "\n") {
                let words = line.split(separator: " ")
                if line.contains("Preferred load address"), let last = words.last {
                    base = UInt64(last, radix: 16) ?? 0
                } else if words.count >= 4, words[0].count == 13, let address = UInt64(words[2], radix: 16) {
                    var name = words[1]
                    if variant.hasPrefix("x86"), name.hasPrefix("_") {
                        name = name.dropFirst().split(separator: "@", maxSplits: 1).first ?? name
                    }
                    symbols[String(name)] = address &- base
                }
            }
            return symbols
        }

        /// The constants of the guest's own headers, which its structures are asserted to have.
        private static func offsets(_ architecture: KernelArchitecture) throws -> [String: UInt64] {
            let package = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
                .deletingLastPathComponent()
            let file = package.appendingPathComponent("Guest/kernel/arch/\(architecture.rawValue)/include/offsets.h")
            var offsets: [String: UInt64] = [:]
            for line in try String(contentsOf: file, encoding: .utf8).split(separator: "\n") {
                let words = line.split(separator: " ")
                guard words.count >= 3, words[0] == "#define", words[2].hasPrefix("0x") else { continue }
                offsets[String(words[1])] = UInt64(words[2].dropFirst(2), radix: 16)
            }
            return offsets
        }

        @Test(
            "Every address and every offset that is derived is what the linker and the headers say", arguments: kernels)
        func agrees(_ kernel: Kernel) throws {
            var configuration = GuestConfiguration.tested
            configuration.optimisation = kernel.optimisation
            configuration.reentry = kernel.reentry
            let guest = try BundledGuestMachine.ready(configuration)
            let machine = try QEMUMachine(
                QEMUTarget(String(guest.target.dropFirst("qemu:".count))), guardianCommand: nil)
            let survey = try GuestSurvey(machine, patterns: [])
            let symbols = try Self.symbols(configuration.variant)
            let base = survey.kernel.base
            func expect(
                _ address: GuestVirtualAddress?, _ name: String, sourceLocation: SourceLocation = #_sourceLocation
            ) throws {
                let symbol = try #require(symbols[name], "no \(name)", sourceLocation: sourceLocation)
                #expect(address == base + symbol, "\(name)", sourceLocation: sourceLocation)
            }
            let is64Bit = survey.kernel.architecture == .x64
            try expect(survey.powerFunction.address, "NtSetSystemPowerState")
            try expect(survey.powerFunction.stub, "ZwSetSystemPowerState")
            try expect(survey.means.delayFunction, "KeDelayExecutionThread")
            try expect(survey.bugCheck?.address, "KeBugCheck2")
            let table = try survey.serviceTable.get()
            try expect(table.descriptor, "KeServiceDescriptorTable")
            try expect(table.base, "KiServiceTable")
            try expect(table.dispatcher, "KiSystemServiceRepeat")
            try expect(table.serviceEntry, is64Bit ? "KiServiceInternal" : "KiSystemService")
            if is64Bit { try expect(table.shadowDescriptor, "KeServiceDescriptorTableShadow") }
            for (name, export) in survey.kernel.exports.exports {
                #expect(symbols[name] == UInt64(export.rva), "\(name)")
            }
            guard case .proved(let path) = survey.reentry else {
                Issue.record("\(survey.reentry)")
                return
            }
            // Each step of the proof is a function of that name.
            let steps = path.compactMap { address in symbols.first { base + $0.value == address }?.key }
            #expect(steps.count == path.count && steps.first == "NtSetSystemPowerState")
            #expect(steps.last == "ZwSetSystemPowerState")
            if kernel.reentry == .deep { #expect(steps.contains("PopRequestFromUserMode")) }

            let offsets = try Self.offsets(survey.kernel.architecture)
            let found = survey.offsets
            for (value, name) in [
                (found.currentThread, "PCR_CurrentThread"), (found.previousMode, "KTHREAD_PreviousMode"),
                (found.attachedProcess, "KTHREAD_ApcState_Process"), (found.threadProcess, "KTHREAD_Process"),
                (found.threadID, "ETHREAD_Cid_UniqueThread"), (found.uniqueProcessID, "EPROCESS_UniqueProcessId"),
                (found.activeProcessLinks, "EPROCESS_ActiveProcessLinks"),
                (found.imageFileName, "EPROCESS_ImageFileName"), (found.peb, "EPROCESS_Peb"),
                (found.directoryTableBase, "KPROCESS_DirectoryTableBase"),
            ] {
                #expect(try value == #require(offsets[name]), "\(name)")
            }
        }
    }
}
