// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Text that was once in order.

use crate::script::Script;

/// What takes the place of a part.
const TOKENS: &[&str] = &[
    "null",
    "-1",
    "18446744073709551616",
    "18446744073709551615",
    "4503599627370496",
    "1e400",
    "[]",
    "{}",
    "\"\"",
    "true",
    "0",
    "65536",
    "256",
    ",",
    "]",
    "}",
    "yes",
    "no",
    "\n",
    "\r",
    "+7",
    ": ",
    "[[[[",
    "4294967296",
    "{\"mmio\":[0,18446744073709551615]}",
    "{\"pci\":4294967295}",
    "{\"port\":[0,65535]}",
    "\u{fffd}",
];

/// Changes some parts of a text; none if the script says so. Or the text is the rest of the script.
pub(super) fn edit(text: String, script: &mut Script) -> Vec<u8> {
    let edits = script.below(6);
    if edits == 5 {
        return script.rest().to_vec();
    }
    let mut text = text.into_bytes();
    for _ in 0..edits {
        let at = script.index(text.len().max(1)).min(text.len());
        let end = |len: usize| text.len().min(at + len);
        match script.below(5) {
            0 => {
                let byte = script.take();
                if let Some(old) = text.get_mut(at) {
                    *old = byte;
                }
            }
            1 => drop(text.drain(at..end(script.index(24)))),
            2 => drop(text.splice(at..at, script.one_of(TOKENS).bytes())),
            3 => {
                let part = text[at..end(script.index(48))].to_vec();
                text.splice(at..at, part);
            }
            _ => {
                // The next number, or word.
                let digit = |byte: &u8| byte.is_ascii_digit();
                let from = text
                    .iter()
                    .skip(at)
                    .position(digit)
                    .map_or(at, |skip| at + skip);
                let len = text[from..].iter().take_while(|byte| digit(byte)).count();
                let new = match script.take() {
                    true => script.edgy().to_string(),
                    false => script.one_of(TOKENS).to_owned(),
                };
                text.splice(from..from + len, new.bytes());
            }
        }
    }
    text
}
