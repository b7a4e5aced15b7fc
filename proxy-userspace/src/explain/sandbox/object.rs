//! A copy of the embedded object that pins nothing and has the globals of the running programs. Both are patched in the
//! bytes of the ELF file, so every global is covered, including those that later versions add.

use object::{Object as _, ObjectSection as _, ObjectSymbol as _, elf::FileHeader64, read::elf::ElfFile};

use crate::datapath::load::GLOBALS_SECTION;

/// The section of the map definitions: each a `struct bpf_map_def` of [`MAP_DEF`] bytes, whose last word is the pinning mode.
const MAPS_SECTION: &str = "maps";
const MAP_DEF: usize = 28;

/// The object differs from the running programs, or cannot be parsed.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    #[error("the embedded eBPF object cannot be parsed: {0}")]
    Elf(#[from] object::Error),
    #[error("the embedded eBPF object has no section {0}")]
    NoSection(&'static str),
    #[error(
        "the running programs have {live} bytes of globals and those of this shunt have {ours}: they are of another version; \
         use the shunt binary that is running"
    )]
    Version { live: usize, ours: usize },
}

type Elf<'a> = ElfFile<'a, FileHeader64<object::Endianness>>;

/// `object` without pinning, and with these globals.
pub fn unpinned(object: &[u8], globals: &[u8]) -> Result<Vec<u8>, ObjectError> {
    let elf = Elf::parse(object)?;
    let mut copy = object.to_vec();
    let range = range_of(&elf, GLOBALS_SECTION)?;
    if range.len() != globals.len() {
        return Err(ObjectError::Version { live: globals.len(), ours: range.len() });
    }
    copy[range].copy_from_slice(globals);
    for definition in copy[range_of(&elf, MAPS_SECTION)?].chunks_exact_mut(MAP_DEF) {
        definition[MAP_DEF - 4..].fill(0);
    }
    Ok(copy)
}

/// The value of a global of at most 8 bytes; `None` if there is no such global.
pub fn global(object: &[u8], globals: &[u8], name: &str) -> Result<Option<u64>, ObjectError> {
    let elf = Elf::parse(object)?;
    let Some(section) = elf.section_by_name(GLOBALS_SECTION) else {
        return Err(ObjectError::NoSection(GLOBALS_SECTION));
    };
    let symbol = elf.symbols().find(|symbol| {
        symbol.section_index() == Some(section.index()) && symbol.name() == Ok(name) && symbol.size() <= 8
    });
    Ok(symbol.and_then(|symbol| {
        let at = symbol.address() as usize;
        let bytes = globals.get(at..at + symbol.size() as usize)?;
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        Some(u64::from_le_bytes(word))
    }))
}

fn range_of(elf: &Elf<'_>, name: &'static str) -> Result<std::ops::Range<usize>, ObjectError> {
    let range = elf.section_by_name(name).and_then(|section| section.file_range());
    let (start, len) = range.ok_or(ObjectError::NoSection(name))?;
    Ok(start as usize..(start + len) as usize)
}

#[cfg(test)]
mod tests {
    use aya_obj::maps::PinningType;

    use super::*;
    use crate::datapath::OBJECT;

    fn own_globals() -> Vec<u8> {
        let elf = Elf::parse(OBJECT).unwrap();
        OBJECT[range_of(&elf, GLOBALS_SECTION).unwrap()].to_vec()
    }

    #[test]
    fn only_the_pinning_changes() {
        let copy = unpinned(OBJECT, &own_globals()).unwrap();
        let (copy, object) =
            (aya_obj::Object::parse(&copy).unwrap(), aya_obj::Object::parse(OBJECT).unwrap());
        for name in proxy_common::map::ALL {
            let (ours, theirs) = (&copy.maps[name], &object.maps[name]);
            assert_eq!(
                (ours.pinning(), theirs.pinning()),
                (PinningType::None, PinningType::ByName),
                "{name}"
            );
            let layout = |map: &aya_obj::Map| {
                (map.map_type(), map.key_size(), map.value_size(), map.max_entries(), map.map_flags())
            };
            assert_eq!(layout(ours), layout(theirs), "{name}");
        }
    }

    #[test]
    fn globals_are_read_and_replaced() {
        let mut globals = own_globals();
        assert_eq!(global(OBJECT, &globals, "HALF_OPEN_MAX").unwrap(), Some(32_768));
        assert_eq!(global(OBJECT, &globals, "NO_SUCH_GLOBAL").unwrap(), None);
        let at = globals.windows(4).position(|word| word == 32_768u32.to_ne_bytes()).unwrap();
        globals[at..at + 4].copy_from_slice(&77u32.to_ne_bytes());
        let copy = unpinned(OBJECT, &globals).unwrap();
        let elf = Elf::parse(&*copy).unwrap();
        let taken = &copy[range_of(&elf, GLOBALS_SECTION).unwrap()];
        assert_eq!(global(OBJECT, taken, "HALF_OPEN_MAX").unwrap(), Some(77));
    }

    #[test]
    fn globals_of_another_version_are_rejected() {
        assert!(matches!(unpinned(OBJECT, &[0; 3]), Err(ObjectError::Version { live: 3, .. })));
    }
}
