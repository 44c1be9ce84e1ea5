"""Makes the checkpoints `families/qwen2_vl`, `families/qwen2_5_vl`, `families/qwen3_vl`, `families/cosmos3_omni` and `families/cosmos3_edge`."""

from qwen_checkpoint import write_checkpoint, write_fresh
from qwen_families import COSMOS3_EDGE, COSMOS3_OMNI, QWEN2_5_VL, QWEN2_VL, QWEN3_VL


def main() -> None:
    for family in (QWEN2_VL, QWEN2_5_VL, QWEN3_VL, COSMOS3_OMNI, COSMOS3_EDGE):
        write_checkpoint(family)
        write_fresh(family)


if __name__ == "__main__":
    main()
