"""Makes the checkpoints `families/` of `qwen2_vl`, `qwen2_5_vl`, `qwen3_vl`, `qwen3_5`, `cosmos3_omni` and `cosmos3_edge`."""

from qwen_checkpoint import write_checkpoint, write_fresh
from qwen_families import COSMOS3_EDGE, COSMOS3_OMNI, QWEN2_5_VL, QWEN2_VL, QWEN3_5, QWEN3_VL


def main() -> None:
    for family in (QWEN2_VL, QWEN2_5_VL, QWEN3_VL, QWEN3_5, COSMOS3_OMNI, COSMOS3_EDGE):
        write_checkpoint(family)
        write_fresh(family)


if __name__ == "__main__":
    main()
