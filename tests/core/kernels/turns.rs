//! Rows of rotary tables.

use super::{Launch, Random, ORDERS};

/// Rows that a block writes.
const ROWS: usize = 8;

#[test]
fn rows_of_tables_are_put_together_from_the_axes_of_their_pairs() {
    let mut random = Random(3);
    for (half, count) in [(3, 1), (64, 8), (16, 9), (48, 21)] {
        let mut axes = (0..half).map(|pair| pair as u32 % 3).collect::<Vec<_>>();
        let mut angles = [0, 1].map(|_| random.numbers(40 * half));
        let rows = (0..count).map(|n| {
            let [time, height, width] = [(); 3].map(|()| random.below(40) as u32);
            [2 * n as u32 + 1, time, height, width]
        });
        let mut rows = rows.collect::<Vec<_>>();
        let before = random.numbers((2 * count + 2) * half);
        let mut want = [before.clone(), before.clone()];
        for row in &rows {
            for pair in 0..half {
                let to = row[0] as usize * half + pair;
                let from = row[1 + pair % 3] as usize * half + pair;
                for (want, angles) in want.iter_mut().zip(&angles) {
                    want[to] = angles[from];
                }
            }
        }
        for order in ORDERS {
            let [mut cos, mut sin] = [before.clone(), before.clone()];
            let [angle_cos, angle_sin] = &mut angles;
            Launch::new("write_turns", [count.div_ceil(ROWS), 1, 1], 128)
                .buffer(&mut rows)
                .number(count)
                .buffer(angle_cos)
                .buffer(angle_sin)
                .buffer(&mut axes)
                .number(half)
                .buffer(&mut cos)
                .buffer(&mut sin)
                .run(order);
            assert_eq!([cos, sin], want, "half {half}, {count} rows");
        }
    }
}
