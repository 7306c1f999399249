//! Pairwise covering: most faults of combinations need two choices to meet, so a few combinations that hold every pair
//! find most of what all of them would. (Kuhn, Wallace, Gallo: Software Fault Interactions, IEEE TSE 30(6), 2004.)

use std::collections::BTreeSet;

/// Every combination of one value of each dimension, the last dimension fastest.
pub fn all<const N: usize>(sizes: [usize; N]) -> Vec<[usize; N]> {
    let mut found = vec![[0; N]];
    for (dimension, size) in sizes.into_iter().enumerate() {
        let of_each = |partial: [usize; N]| {
            (0..size).map(move |value| {
                let mut more = partial;
                more[dimension] = value;
                more
            })
        };
        found = found.into_iter().flat_map(of_each).collect();
    }
    found
}

/// Combinations that together hold every pair that the first, the default, has not; at most so many, those first that
/// hold the most new pairs. Among equals the seed decides.
pub fn cover<const N: usize>(sizes: [usize; N], seed: u64, most: usize) -> Vec<[usize; N]> {
    let mut rest = all(sizes);
    let default = rest.remove(0);
    rest.sort_by_key(|combination| mixed(seed, combination));
    let mut covered = pairs(&default);
    let mut chosen = Vec::new();
    while chosen.len() < most {
        let gain = |combination: &[usize; N]| pairs(combination).difference(&covered).count();
        // The first of the best: `max_by_key` would take the last.
        let Some(best) = rest.iter().rev().max_by_key(|combination| gain(combination)).copied() else {
            break;
        };
        if gain(&best) == 0 {
            break;
        }
        covered.extend(pairs(&best));
        chosen.push(best);
    }
    chosen
}

type Pair = ((usize, usize), (usize, usize));

fn pairs<const N: usize>(combination: &[usize; N]) -> BTreeSet<Pair> {
    let values: Vec<(usize, usize)> = combination.iter().copied().enumerate().collect();
    let with_later = |(at, first): (usize, &(usize, usize))| {
        let first = *first;
        values[at + 1..].iter().map(move |second| (first, *second)).collect::<Vec<Pair>>()
    };
    values.iter().enumerate().flat_map(with_later).collect()
}

/// splitmix64 over the seed and the values: an order that looks like chance and is the same everywhere.
fn mixed(seed: u64, values: &[usize]) -> u64 {
    values.iter().fold(seed, |state, value| {
        let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_add(*value as u64);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [usize; 4] = [4, 5, 3, 3];

    #[test]
    fn without_a_bound_every_pair_is_covered_by_few_combinations() {
        let wanted: BTreeSet<Pair> = all(SIZES).iter().flat_map(pairs).collect();
        for seed in 0..10 {
            let chosen = cover(SIZES, seed, usize::MAX);
            let covered: BTreeSet<Pair> = chosen.iter().chain([&[0; 4]]).flat_map(pairs).collect();
            assert_eq!(covered, wanted, "seed {seed}");
            // 180 combinations; the two largest dimensions alone need 20.
            assert!(chosen.len() < 30, "{} combinations", chosen.len());
        }
    }

    #[test]
    fn a_seed_decides_and_many_seeds_meet_everything() {
        assert_eq!(cover(SIZES, 7, 3), cover(SIZES, 7, 3));
        let met: BTreeSet<[usize; 4]> = (0..2000).flat_map(|seed| cover(SIZES, seed, 2)).collect();
        let every_value = |dimension: usize| met.iter().map(|c| c[dimension]).collect::<BTreeSet<_>>().len();
        for (dimension, size) in SIZES.into_iter().enumerate() {
            assert_eq!(every_value(dimension), size, "of dimension {dimension}");
        }
    }

    #[test]
    fn nothing_is_left_where_there_is_one_of_each() {
        assert_eq!(cover([1, 1, 1], 0, 9), Vec::<[usize; 3]>::new());
        assert_eq!(cover([1, 1, 3], 0, 9).len(), 2);
    }
}
