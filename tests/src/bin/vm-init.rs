//! /init of the virtual machines of the vm suite; anywhere else it would power the machine off.

fn main() {
    if std::process::id() != 1 {
        eprintln!("vm-init is process 1 of a virtual machine of `cargo xtask test vm`, nothing else");
        std::process::exit(2);
    }
    tests::vm::guest::main()
}
