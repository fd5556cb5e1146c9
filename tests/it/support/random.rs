//! Random choices that can be made again: the seed is printed, and taken from
//! `DESKFEED_TEST_SEED` when that is set.

/// SplitMix64.
pub struct Random(u64);

impl Random {
    /// A new one, under the name of the test that uses it.
    pub fn of(test: &str) -> Self {
        let seed = match std::env::var("DESKFEED_TEST_SEED") {
            Ok(seed) => seed.parse().expect("DESKFEED_TEST_SEED is a number"),
            Err(_) => {
                let mut bytes = [0; 8];
                getrandom::fill(&mut bytes).expect("the system has random numbers");
                u64::from_le_bytes(bytes)
            }
        };
        println!("{test}: DESKFEED_TEST_SEED={seed}");
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// 0..`end`, without `end`.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("below end")
    }

    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }

    /// True `percent` times in a hundred.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| u8::try_from(self.next() & 0xff).expect("a byte")).collect()
    }
}
