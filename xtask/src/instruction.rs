//! The little of an eBPF disassembler that `stack` needs: which bytes of its frame a function reaches, which functions
//! it names.

/// The frame pointer.
const R10: usize = 10;
/// Loads 64 bits, in two slots.
const LD_IMM64: u8 = 0x18;
const CALL: u8 = 0x85;

/// One slot of eight bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    op: u8,
    dst: usize,
    src: usize,
    off: i16,
    imm: i32,
}

impl Instruction {
    pub fn read(code: &[u8]) -> Vec<Self> {
        let (slots, _) = code.as_chunks::<8>();
        slots.iter().map(|slot| Self::of(*slot)).collect()
    }

    fn of([op, regs, off0, off1, imm @ ..]: [u8; 8]) -> Self {
        Self {
            op,
            dst: usize::from(regs & 15),
            src: usize::from(regs >> 4),
            off: i16::from_le_bytes([off0, off1]),
            imm: i32::from_le_bytes(imm),
        }
    }

    pub fn names(&self) -> Names {
        match (self.op, self.src) {
            (CALL, 1) => Names::Call((i64::from(self.imm) + 1) * 8),
            (LD_IMM64, _) => Names::Pointer(self.imm.into()),
            _ => Names::Nothing,
        }
    }
}

/// What an instruction names of the object, in bytes from its relocation's symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    Nothing,
    /// A function that it calls (BPF_PSEUDO_CALL); without a relocation the bytes count from the instruction.
    Call(i64),
    /// Whatever the relocation is about: a map, constants, or a function for a helper to call.
    Pointer(i64),
}

/// Bytes of its frame that a function reaches, by r10 or by what it derived from it.
pub fn frame(code: &[Instruction]) -> u32 {
    // How far each register lies from the frame pointer, where that is known.
    let mut regs: [Option<i64>; 16] = [None; 16];
    regs[R10] = Some(0);
    let mut lowest = 0;
    let mut code = code.iter();
    while let Some(one) = code.next() {
        let (dst, src, off) = (one.dst, one.src, i64::from(one.off));
        let mut reach = |from: Option<i64>, off: i64| {
            if let Some(from) = from {
                lowest = lowest.min(from + off);
            }
        };
        match (one.op & 7, one.op) {
            (_, LD_IMM64) => {
                code.next();
                regs[dst] = None;
            }
            // Loads.
            (0 | 1, _) => {
                reach(regs[src], off);
                regs[dst] = None;
            }
            // Stores, atomic operations.
            (2 | 3, _) => reach(regs[dst], off),
            (_, CALL) => regs[..6].fill(None),
            // What follows a jump or the end is reached from elsewhere.
            (_, 0x05 | 0x06 | 0x95) => {
                regs = [None; 16];
                regs[R10] = Some(0);
            }
            (5 | 6, _) => {}
            (_, 0xbf) if off == 0 => regs[dst] = regs[src],
            (_, 0x07) => {
                regs[dst] = regs[dst].map(|from| from + i64::from(one.imm));
                reach(regs[dst], 0);
            }
            // All other arithmetic.
            _ => regs[dst] = None,
        }
    }
    u32::try_from(-lowest).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(op: u8, dst: usize, src: usize, off: i16, imm: i32) -> Instruction {
        Instruction { op, dst, src, off, imm }
    }

    #[test]
    fn slots_are_read() {
        // r1 = *(u64 *)(r10 - 8); call +2
        let bytes = [0x79, 0xa1, 0xf8, 0xff, 0, 0, 0, 0, 0x85, 0x10, 0, 0, 2, 0, 0, 0];
        let code = Instruction::read(&bytes);
        assert_eq!(code, [op(0x79, 1, 10, -8, 0), op(0x85, 0, 1, 0, 2)]);
        assert_eq!((code[0].names(), code[1].names()), (Names::Nothing, Names::Call(24)));
    }

    #[test]
    fn loads_and_stores_reach_into_the_frame() {
        assert_eq!(frame(&[op(0x79, 1, 10, -8, 0), op(0x7b, 10, 1, -24, 0)]), 24);
        assert_eq!(frame(&[op(0x79, 1, 6, -80, 0), op(0x95, 0, 0, 0, 0)]), 0);
    }

    #[test]
    fn pointers_into_the_frame_count_from_where_they_point() {
        // r2 = r10; r2 += -40; r3 = r2; *(r3 - 8) = 1
        let code =
            [op(0xbf, 2, 10, 0, 0), op(0x07, 2, 0, 0, -40), op(0xbf, 3, 2, 0, 0), op(0x7a, 3, 0, -8, 1)];
        assert_eq!(frame(&code[..2]), 40);
        assert_eq!(frame(&code), 48);
    }

    #[test]
    fn what_a_register_pointed_at_is_forgotten_with_it() {
        // r2 = r10; r2 = *(r1 + 0); *(r2 - 200) = 1
        let code = [op(0xbf, 2, 10, 0, 0), op(0x79, 2, 1, 0, 0), op(0x7a, 2, 0, -200, 1)];
        assert_eq!(frame(&code), 0);
        // A call takes r1 to r5; the second slot of a wide load is no instruction.
        let code = [op(0xbf, 2, 10, 0, 0), op(0x85, 0, 0, 0, 1), op(0x7a, 2, 0, -200, 1)];
        assert_eq!(frame(&code), 0);
        let code = [op(0x18, 1, 0, 0, 0), op(0x7a, 10, 0, -96, 0), op(0x95, 0, 0, 0, 0)];
        assert_eq!(frame(&code), 0);
    }
}
