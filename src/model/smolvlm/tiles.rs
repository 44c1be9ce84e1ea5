//! Which tiles of a prompt belong together, as its markup shows.

/// Rows and columns of the tiles of each picture in `ids`; none of either where a picture is not cut.
///
/// Every tile is a run of `tokens` image tokens behind its name, and the name of a picture's last one, which shows all of it, is
/// always the same. Tiles of a row have two tokens between them; the end of a row is at least one more.
pub fn grids(ids: &[u32], image_token: u32, tokens: usize) -> Vec<(usize, usize)> {
    let starts = starts(ids, image_token, tokens);
    let name = |start: usize| start.checked_sub(1).map(|before| ids[before]);
    let Some(whole) = starts.last().map(|&last| name(last)) else {
        return Vec::new();
    };
    starts
        .split_inclusive(|&start| name(start) == whole)
        .map(|picture| {
            let tiles = picture.len() - 1;
            let in_row = |pair: &[usize]| pair[1] - pair[0] == tokens + 2;
            let columns = picture.windows(2).take_while(|pair| in_row(pair)).count() + 1;
            match tiles {
                0 => (0, 0),
                _ => (tiles / columns, columns),
            }
        })
        .collect()
}

/// Where the runs of `tokens` image tokens start.
fn starts(ids: &[u32], image_token: u32, tokens: usize) -> Vec<usize> {
    let mut starts = Vec::new();
    let mut at = 0;
    for run in ids.chunk_by(|a, b| (*a == image_token) == (*b == image_token)) {
        if run[0] == image_token {
            starts.extend((at..at + run.len()).step_by(tokens.max(1)));
        }
        at += run.len();
    }
    starts
}

#[cfg(test)]
mod tests {
    use super::grids;

    /// Image token 9, names 1 to 6 and 7 for the whole, 8 between.
    #[test]
    fn rows_and_columns_are_seen_from_the_markup() {
        let cut = [
            8, 1, 9, 9, 8, 2, 9, 9, 0, 8, 3, 9, 9, 8, 4, 9, 9, 0, 0, 8, 7, 9, 9, 8,
        ];
        assert_eq!(grids(&cut, 9, 2), [(2, 2)]);
        let column = [8, 1, 9, 9, 0, 8, 2, 9, 9, 0, 0, 8, 7, 9, 9, 8];
        let whole = [8, 7, 9, 9, 8];
        let both = [&whole[..], &column, &whole].concat();
        assert_eq!(grids(&both, 9, 2), [(0, 0), (2, 1), (0, 0)]);
        assert!(grids(&[1, 2, 3], 9, 2).is_empty());
    }
}
