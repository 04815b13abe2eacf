// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a driver is given, and what it did. Both are words, so that they can be passed through guest memory.

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: u64,)*
        }

        impl $name {
            /// How many words it is.
            pub const WORDS: usize = [$(stringify!($field)),*].len();

            /// Its fields, in order.
            #[must_use]
            pub fn to_words(&self) -> [u64; Self::WORDS] {
                [$(self.$field),*]
            }

            /// From its fields, in order.
            #[must_use]
            pub fn from_words(words: [u64; Self::WORDS]) -> Self {
                let [$($field),*] = words;
                $name { $($field),* }
            }
        }
    };
}

words! {
    /// What a driver is given.
    Task {
        /// The vCPU it runs on.
        vcpu,
        /// How many drivers there are.
        vcpus,
        /// Contexts alive at once.
        contexts,
        /// Commands to submit.
        submissions,
        /// Rounds of writing tables together with another driver.
        rounds,
        /// Entries that the writer of a round goes on to write once its table was taken away.
        after,
        /// Seed of everything random.
        seed,
        /// First frame of its arena.
        arena_first,
        /// Frames of its arena.
        arena_frames,
    }
}

words! {
    /// What it did.
    Done {
        /// 48-bit contexts.
        wide_created,
        /// 32-bit contexts.
        narrow_created,
        /// Those of either kind that stream.
        streams_created,
        /// Table pages that were given back to the guest's allocator.
        tables_freed,
        /// Of those, pages that became data.
        tables_reused,
        /// Buffers that were moved in GPU space.
        moved,
        /// Entries of windows that were led elsewhere.
        window_writes,
        /// Ticks that this took the vCPU.
        window_ticks,
        /// Ticks that all took.
        ticks,
        /// Times a page table that contexts share was written.
        common_turns,
        /// Bytes that came back and were compared.
        bytes,
        /// Of those, wrong ones.
        wrong_bytes,
        /// Other things that were wrong.
        wrong,
        /// Rounds of writing tables together with another driver.
        rounds,
        /// Entries written in them, trapped or not.
        shared_writes,
        /// Interrupts that the vCPU took.
        interrupts,
    }
}

impl Done {
    /// Adds another driver's.
    #[must_use]
    pub fn and(&self, other: &Done) -> Done {
        let mut words = self.to_words();
        for (word, other) in words.iter_mut().zip(other.to_words()) {
            *word = word.wrapping_add(other);
        }
        Done::from_words(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_the_fields_in_order_both_ways() {
        let words = core::array::from_fn(|at| at as u64 + 1);
        let done = Done::from_words(words);
        assert_eq!(
            (done.wide_created, done.interrupts),
            (1, Done::WORDS as u64)
        );
        assert_eq!(done.to_words(), words);
        assert_eq!(done.and(&done).to_words(), words.map(|word| 2 * word));
    }
}
