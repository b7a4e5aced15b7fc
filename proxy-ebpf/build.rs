//! Tells aya-ebpf's bindings which CPU's `pt_regs` layout to use.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    aya_build::emit_bpf_target_arch_cfg()?;
    Ok(())
}
