#!/usr/bin/env bash
# rosbag2's MCAP files with compression_mode MESSAGE, as rosbags 0.11.9 writes them: every message is a zstd frame, but where MCAP has its
# formats nothing says so. The channel still has the encoding cdr, and the chunks have no compression; it is told by metadata.yaml and by a
# copy of that text in the file, which only who knows rosbag2 looks into. A reader of MCAP (mcap 1.6.0) hands the frames out as cdr.
# (Where the storage compresses, the chunks say zstd, the messages come as CDR, and metadata.yaml says that nothing is compressed.)
# Ends with an error if it behaves otherwise today. Needs python3 with venv.
set -euo pipefail
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check rosbags==0.11.9 mcap==1.6.0
cat >"$dir/show.py" <<'PYTHON'
import sys
from pathlib import Path

from mcap.reader import make_reader
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

STORE = get_typestore(Stores.ROS2_JAZZY)
TYPE = "std_msgs/msg/String"


def show(name, mode):
    bag = Path(sys.argv[1]) / name
    writer = Writer(bag, version=9, storage_plugin=StoragePlugin.MCAP)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        connection = writer.add_connection("/text", TYPE, typestore=STORE)
        writer.write(connection, 1, STORE.serialize_cdr(STORE.types[TYPE]("x" * 1000), TYPE))
    metadata = (bag / "metadata.yaml").read_text().splitlines()
    said = next(line.split(":")[1].strip().strip("'") for line in metadata if "compression_mode" in line)
    with (bag / f"{name}.mcap").open("rb") as file:
        reader = make_reader(file)
        chunks = {chunk.compression for chunk in reader.get_summary().chunk_indexes}
        for _, channel, message in reader.iter_messages():
            encoding = f"encoding {channel.message_encoding}, {sorted(channel.metadata)}"
            print(f"{name}: metadata.yaml {said or 'none'}; in the file: chunks {chunks}, {encoding},", end=" ")
            print("data begins with", message.data[:4].hex(" "))


show("message", CompressionMode.MESSAGE)
show("storage", CompressionMode.STORAGE)
PYTHON
expected="message: metadata.yaml message; in the file: chunks {''}, encoding cdr, ['offered_qos_profiles'], data begins with 28 b5 2f fd
storage: metadata.yaml none; in the file: chunks {'zstd'}, encoding cdr, ['offered_qos_profiles'], data begins with 00 01 00 00"
found="$("$dir/venv/bin/python" "$dir/show.py" "$dir")"
echo "$found"
diff <(echo "$expected") <(echo "$found") && echo "rosbags 0.11.9 and mcap 1.6.0 behave as described"
