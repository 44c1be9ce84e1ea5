"""Makes the checkpoints `families/qwen2_vl`, `families/qwen2_5_vl`, `families/qwen3_vl` and `families/cosmos3_omni`."""

from qwen_checkpoint import write_checkpoint, write_fresh
from qwen_families import COSMOS3_OMNI, QWEN2_5_VL, QWEN2_VL, QWEN3_VL


def main() -> None:
    for family in (QWEN2_VL, QWEN2_5_VL, QWEN3_VL, COSMOS3_OMNI):
        write_checkpoint(family)
        write_fresh(family)


if __name__ == "__main__":
    main()
