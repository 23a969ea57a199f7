#![allow(clippy::unwrap_used)]
use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::test_support::{shorten, sparse};
use super::*;

fn half(seed: u64, rows: usize, cols: usize, density: f64) -> Vec<f16> {
    sparse(seed, rows * cols, density).into_iter().map(f16::from_f32).collect()
}

fn bits(w: &[f16]) -> Vec<u16> {
    w.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn by_hand() {
    // Row 0: 1 at column 3. Row 9: 2 at column 10, which row 9 mod 8 = 1 moves to 10 XOR 8 = 2.
    let mut w = vec![f16::ZERO; 10 * 12];
    w[3] = f16::from_f32(1.0);
    w[9 * 12 + 10] = f16::from_f32(2.0);
    w[5] = f16::NEG_ZERO; // counts as zero
    let m = TiledCsl::encode(&w, 10, 12, Order::Plain).unwrap();
    let at = |p: u32| p << 16;
    assert_eq!(m.tile(0), [at(3) | 0x3c00, at(9 * 64 + 2) | 0x4000, at(0), at(0)]);
    assert_eq!(m.parts().offsets.as_ref(), [0, 1, 1]);
    assert_eq!((m.nnz(), m.n_tiles(), m.bytes()), (2, 1, 4 * 4 + 4 * 3));
    w[5] = f16::ZERO;
    assert_eq!(bits(&m.decode()), bits(&w));
    // Shuffled: banks 1 and 1 (places 3 and 578); padding of places 0 and 4, the first of the emptiest banks 0 and 2. One
    // incomplete group of one lane: taken first is the fullest bank's last entry, stored last.
    let m = TiledCsl::encode(&w, 10, 12, Order::Shuffled).unwrap();
    assert_eq!(m.tile(0), [at(4), at(3) | 0x3c00, at(0), at(9 * 64 + 2) | 0x4000]);
    assert_eq!(bits(&m.decode()), bits(&w));
}

#[test]
fn the_swizzle_is_an_involution_and_a_bijection() {
    let mut seen = BTreeSet::new();
    for (row, col) in (0..TILE_ROWS).flat_map(|r| (0..TILE_COLS).map(move |c| (r, c))) {
        assert_eq!(swizzle(row, swizzle(row, col)), col);
        assert_eq!(unplace(place(row, col)), (row, col));
        assert!(seen.insert(place(row, col)) && usize::from(place(row, col)) < PLACES);
    }
    assert_eq!(seen.len(), PLACES);
    // Eight rows of one column stand in eight banks.
    let banks: BTreeSet<u16> = (0..8).map(|r| place(r, 5) / 2 % 32).collect();
    assert_eq!(banks.len(), 8);
}

#[test]
fn lanes_meet_in_no_bank_while_the_banks_are_even() {
    // A dense tile has 256 entries in each bank: every step of 32 lanes touches 32 banks.
    let m = TiledCsl::encode(&half(1, 128, 64, 1.0), 128, 64, Order::Shuffled).unwrap();
    for group in m.tile(0).chunks_exact(BANKS * VECTOR) {
        for v in 0..VECTOR {
            let banks: BTreeSet<u16> =
                (0..BANKS).map(|lane| place_of(group[lane * VECTOR + v]) / 2 % 32).collect();
            assert_eq!(banks.len(), BANKS);
        }
    }
    // At random 70 %, far fewer meet than in the plain order.
    let w = half(2, 128, 64, 0.3);
    let meetings = |order| {
        let m = TiledCsl::encode(&w, 128, 64, order).unwrap();
        let mut all = 0;
        for group in m.tile(0).chunks_exact(BANKS * VECTOR) {
            for v in 0..VECTOR {
                let banks: BTreeSet<u16> =
                    (0..BANKS).map(|lane| place_of(group[lane * VECTOR + v]) / 2 % 32).collect();
                all += BANKS - banks.len();
            }
        }
        all
    };
    assert!(10 * meetings(Order::Shuffled) < meetings(Order::Plain));
}

#[test]
fn dense_tiles_are_held_and_refused_for_the_gpu() {
    let w = half(3, 256, 128, 1.0);
    for order in [Order::Plain, Order::Shuffled] {
        let m = TiledCsl::encode(&w, 256, 128, order).unwrap();
        assert_eq!((m.tile(3).len(), bits(&m.decode())), (8192, bits(&w)));
        let refused = m.check_gpu_limits();
        assert_eq!(refused, Err(SparsityError::DenseTile { row: 0, col: 0, entries: 8192, limit: 4096 }));
        // Exactly half is allowed; one more weight is not, and the tile is named.
        let mut half: Vec<f16> = w.clone();
        for (i, v) in half.iter_mut().enumerate() {
            if i % 2 == 0 {
                *v = f16::ZERO;
            }
        }
        assert_eq!(TiledCsl::encode(&half, 256, 128, order).unwrap().check_gpu_limits(), Ok(()));
        half[200 * 128 + 70] = f16::ONE;
        let refused = TiledCsl::encode(&half, 256, 128, order).unwrap().check_gpu_limits();
        assert_eq!(refused, Err(SparsityError::DenseTile { row: 128, col: 64, entries: 4100, limit: 4096 }));
    }
}

#[test]
fn all_but_one_two_or_three_weights_leave_room_for_the_padding() {
    for holes in 1..=3 {
        let mut w = half(4, 128, 64, 1.0);
        (0..holes).for_each(|i| w[i * 777 + 5] = f16::ZERO);
        for order in [Order::Plain, Order::Shuffled] {
            let m = TiledCsl::encode(&w, 128, 64, order).unwrap();
            assert_eq!((m.tile(0).len(), m.nnz(), bits(&m.decode())), (8192, 8192 - holes, bits(&w)));
            assert_eq!(TiledCsl::from_parts(128, 64, m.parts()).unwrap(), m);
        }
    }
}

#[test]
fn empty_and_zero_matrices_and_rare_values() {
    for (rows, cols) in [(0, 0), (0, 70), (130, 0), (130, 70)] {
        for order in [Order::Plain, Order::Shuffled] {
            let w = vec![f16::ZERO; rows * cols];
            let m = TiledCsl::encode(&w, rows, cols, order).unwrap();
            assert_eq!((m.nnz(), m.decode().len()), (0, rows * cols));
            assert_eq!(m.bytes(), 4 * (m.n_tiles() + 2));
            assert_eq!(TiledCsl::from_parts(rows, cols, m.parts()).unwrap(), m);
        }
    }
    let w = [f16::NAN, f16::INFINITY, f16::from_bits(1), f16::NEG_ZERO, f16::MIN, f16::from_bits(0x8001)];
    for order in [Order::Plain, Order::Shuffled] {
        let m = TiledCsl::encode(&w, 2, 3, order).unwrap();
        let back = m.decode();
        assert!(
            back[0].is_nan() && back[3].to_bits() == 0 && m.nnz() == 5,
            "denormals are weights, -0 is none"
        );
        assert_eq!(bits(&back)[4..], bits(&w)[4..]);
        assert_eq!((back[1], back[2]), (w[1], w[2]));
    }
}

/// Which field is blamed after `change`; `resum`: with a checksum made to fit, as an attacker would.
fn refused(order: Order, resum: bool, change: impl FnOnce(&mut TiledCslParts<'_>)) -> &'static str {
    // 130 x 70: four tiles, three of which lie partly outside of the matrix.
    let m = TiledCsl::encode(&half(5, 130, 70, 0.02), 130, 70, order).unwrap();
    let mut parts = m.parts();
    change(&mut parts);
    if resum {
        parts.checksum = checksum(130, 70, parts.order, &parts.offsets, &parts.entries);
    }
    match TiledCsl::from_parts(130, 70, parts) {
        Err(SparsityError::Malformed { field, .. }) => field,
        other => panic!("{other:?}"),
    }
}

#[test]
fn hostile_parts_are_refused() {
    for order in [Order::Plain, Order::Shuffled] {
        let refused = |resum, change: &dyn Fn(&mut TiledCslParts<'_>)| refused(order, resum, change);
        assert_eq!(refused(false, &|p| p.version = 0), "version");
        assert_eq!(refused(false, &|p| p.checksum ^= 1), "checksum");
        assert_eq!(refused(false, &|p| p.entries.to_mut()[0] ^= 1), "checksum");
        assert_eq!(refused(false, &|p| p.offsets.to_mut()[1] ^= 1), "checksum");
        assert_eq!(refused(true, &|p| shorten(p.offsets.to_mut())), "offsets");
        assert_eq!(refused(true, &|p| p.offsets.to_mut().push(0)), "offsets");
        assert_eq!(refused(true, &|p| p.offsets.to_mut()[0] = 1), "offsets");
        assert_eq!(refused(true, &|p| p.offsets.to_mut()[1] = u32::MAX), "offsets");
        assert_eq!(refused(true, &|p| p.offsets.to_mut()[4] -= 1), "offsets");
        assert_eq!(refused(true, &|p| p.offsets.to_mut()[5] += 1), "offsets");
        assert_eq!(refused(true, &|p| shorten(p.entries.to_mut())), "entries");
        assert_eq!(refused(true, &|p| p.entries.to_mut().extend([0; 4])), "offsets");
        // A vector of padding more than needed.
        let more = |p: &mut TiledCslParts<'_>| {
            p.entries.to_mut().extend([0; 4]);
            p.offsets.to_mut()[4..].iter_mut().for_each(|o| *o += 1);
        };
        assert_eq!(refused(true, &more), "entries");
        assert_eq!(refused(true, &|p| p.entries.to_mut()[0] |= 0xe000_0000), "entries");
        // A weight twice, and padding at the place of a weight.
        let first = |p: &TiledCslParts<'_>| p.entries.iter().position(|e| !value(*e).is_zero()).unwrap();
        let twice = |p: &mut TiledCslParts<'_>| {
            let i = first(p);
            p.entries.to_mut()[i + 1] = p.entries[i];
        };
        assert_eq!(refused(true, &twice), "entries");
        let end = |p: &TiledCslParts<'_>| p.offsets[1] as usize * VECTOR;
        let hidden = |p: &mut TiledCslParts<'_>| {
            // The first tile gets a vector: a weight, and a zero at its place.
            let (i, e) = (first(p), end(p));
            let zero = p.entries[i] & 0xffff_0000;
            p.entries.to_mut().splice(e..e, [zero; 4]);
            p.offsets.to_mut()[1..].iter_mut().for_each(|o| *o += 1);
        };
        assert_eq!(refused(true, &hidden), "entries");
        // A weight of a row or column that the matrix lacks: the last tile has 2 rows and 6 columns.
        let outside = |p: &mut TiledCslParts<'_>| {
            let e = p.entries.len();
            p.entries.to_mut().extend([u32::from(place(2, 0)) << 16 | 0x3c00, 0, 0, 0]);
            assert_eq!(e % 4, 0);
            let from = p.offsets.len() - 2;
            p.offsets.to_mut()[from..].iter_mut().for_each(|o| *o += 1);
        };
        assert_eq!(refused(true, &outside), "entries");
    }
    assert_eq!(refused(Order::Plain, true, |p| p.entries.to_mut().swap(0, 1)), "entries");
    assert_eq!(refused(Order::Shuffled, true, |p| p.order = Order::Plain), "entries");
    let m = TiledCsl::encode(&[], 0, 3, Order::Plain).unwrap();
    for (rows, cols) in [(usize::MAX, 1), (usize::MAX, 2), (1, usize::MAX), (1, 1)] {
        let mut parts = m.parts();
        parts.checksum = checksum(rows, cols, parts.order, &parts.offsets, &parts.entries);
        assert!(TiledCsl::from_parts(rows, cols, parts).is_err(), "{rows} x {cols}");
    }
    assert!(TiledCsl::encode(&[f16::ONE], 2, 2, Order::Plain).is_err());
    assert!(TiledCsl::encode(&[f16::ONE], usize::MAX, 2, Order::Plain).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn both_orders_hold_the_same_matrix(seed: u64, rows in 0usize..300, cols in 0usize..140, density in 0.0f64..=1.0) {
        let w = half(seed, rows, cols, density);
        let [a, b] = [Order::Plain, Order::Shuffled].map(|o| TiledCsl::encode(&w, rows, cols, o).unwrap());
        for m in [&a, &b] {
            prop_assert_eq!(bits(&m.decode()), bits(&w));
            prop_assert_eq!(m.nnz(), w.iter().filter(|v| !v.is_zero()).count());
            let p = m.parts();
            prop_assert!(p.offsets.windows(2).all(|o| o[0] <= o[1]));
            prop_assert_eq!(p.offsets.len(), m.n_tiles() + 2);
            prop_assert_eq!(m.bytes(), 4 * p.entries.len() + 4 * (m.n_tiles() + 2));
            for tile in 0..m.n_tiles() {
                let (zeros, weights): (Vec<u32>, Vec<u32>) = m.tile(tile).iter().partition(|e| value(**e).is_zero());
                prop_assert!(m.tile(tile).len() % VECTOR == 0 && zeros.len() < VECTOR);
                prop_assert!(zeros.iter().all(|z| value(*z).to_bits() == 0 && weights.iter().all(|w| place_of(*w) != place_of(*z))));
            }
            prop_assert_eq!(&TiledCsl::from_parts(rows, cols, p).unwrap(), m);
        }
        for tile in 0..a.n_tiles() {
            let set = |m: &TiledCsl| m.tile(tile).iter().filter(|e| !value(**e).is_zero()).copied().collect::<BTreeSet<_>>();
            prop_assert_eq!(set(&a), set(&b));
        }
    }

    #[test]
    fn damaged_parts_never_panic(offsets in proptest::collection::vec(0u32..9, 0..7), entries in proptest::collection::vec(any::<u32>(), 0..24),
        rows in 0usize..200, cols in 0usize..130, is_plain: bool) {
        let order = if is_plain { Order::Plain } else { Order::Shuffled };
        let sum = checksum(rows, cols, order, &offsets, &entries);
        let parts = TiledCslParts { version: VERSION, order, offsets: offsets.into(), entries: entries.into(), checksum: sum };
        if let Ok(m) = TiledCsl::from_parts(rows, cols, parts) {
            prop_assert_eq!(m.decode().len(), rows * cols);
        }
    }
}
