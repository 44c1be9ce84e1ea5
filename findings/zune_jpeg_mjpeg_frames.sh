#!/usr/bin/env bash
# zune-jpeg 0.5.15, which the crate image decodes JPEG with: a frame without Huffman tables, as USB cameras and AVI files have them in
# Motion JPEG (the tables of ITU-T T.81, annex K.3, are meant), is refused, in strict mode or not. Pillow 13.0.0 (libjpeg-turbo) decodes the
# same bytes to the same pixels as the picture with its tables.
# Ends with an error if it behaves otherwise today. Needs cargo, which builds the crate in a temporary folder, and python3 with venv.
set -euo pipefail
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0
cat >"$dir/frames.py" <<'PYTHON'
import io
import sys
from pathlib import Path

from PIL import Image

DHT, SOS = 0xC4, 0xDA


def without_tables(jpeg):
    """The picture without its segments of Huffman tables."""
    kept, at = jpeg[:2], 2
    while jpeg[at + 1] != SOS:
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if jpeg[at + 1] != DHT:
            kept += jpeg[at:end]
        at = end
    return kept + jpeg[at:]


file = io.BytesIO()
# Not optimised, so that the tables are those of annex K.3.
Image.radial_gradient("L").convert("RGB").save(file, "JPEG", optimize=False)
pixels = []
for name, jpeg in (("whole", file.getvalue()), ("mjpeg", without_tables(file.getvalue()))):
    (Path(sys.argv[1]) / f"{name}.jpg").write_bytes(jpeg)
    pixels.append(Image.open(io.BytesIO(jpeg)).tobytes())
print("Pillow, without tables:", "the same pixels" if pixels[0] == pixels[1] else "other pixels")
PYTHON
mkdir "$dir/src"
cat >"$dir/Cargo.toml" <<'TOML'
[package]
name = "zune_jpeg_mjpeg_frames"
version = "0.0.0"
edition = "2021"

[dependencies]
zune-core = "=0.5.3"
zune-jpeg = "=0.5.15"
TOML
cat >"$dir/src/main.rs" <<'RUST'
use zune_core::bytestream::ZCursor;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

fn main() -> std::io::Result<()> {
    for name in ["whole", "mjpeg"] {
        let jpeg = std::fs::read(format!("{name}.jpg"))?;
        for strict in [true, false] {
            let options = DecoderOptions::default().set_strict_mode(strict);
            let mut decoder = JpegDecoder::new_with_options(ZCursor::new(&jpeg), options);
            match decoder.decode() {
                Ok(pixels) => println!("zune-jpeg, {name}, strict {strict}: {} bytes", pixels.len()),
                Err(error) => println!("zune-jpeg, {name}, strict {strict}: {error}"),
            }
        }
    }
    Ok(())
}
RUST
expected="Pillow, without tables: the same pixels
zune-jpeg, whole, strict true: 196608 bytes
zune-jpeg, whole, strict false: 196608 bytes
zune-jpeg, mjpeg, strict true: Error decoding huffman values: No DC table for component Y
zune-jpeg, mjpeg, strict false: Error decoding huffman values: No DC table for component Y"
found="$(
    "$dir/venv/bin/python" "$dir/frames.py" "$dir"
    cd "$dir"
    cargo run --quiet
)"
echo "$found"
diff <(echo "$expected") <(echo "$found") && echo "zune-jpeg 0.5.15 behaves as described"
