"""The text-only families: what their published directories hold, at tiny sizes."""

from collections.abc import Callable
from dataclasses import dataclass, field

import text_templates
import text_tokenizers
import torch
from tokenizers import Tokenizer

SYSTEM = "You are a mobile robot. Answer briefly."
TURNS = [
    {"role": "user", "content": "What is in view?"},
    {"role": "assistant", "content": "A red box, and the blue ball."},
    {"role": "user", "content": "Should the robot stop at room 1030?"},
]


@dataclass(frozen=True)
class Family:
    """A family's directory: `config` and `generation` as on the hub, where values equal to a class's default are left out.

    `prompt` is the scene: chat messages, a text, or (without a tokenizer) token ids.
    """

    config: dict
    prompt: list | str
    seed: int
    generation: dict = field(default_factory=dict)
    tokenizer: Callable[[], Tokenizer] | None = None
    tokenizer_config: dict = field(default_factory=dict)
    template: str | None = None
    buffers: Callable[[dict], dict[str, torch.Tensor]] = lambda config: {}
    hub_names: dict[str, str] = field(default_factory=dict)  # beginnings of names, today's to the hub's


def shared(architecture: str, model_type: str, **config) -> dict:
    return {
        "architectures": [architecture],
        "initializer_range": 0.02,
        "model_type": model_type,
        "num_hidden_layers": 3,
        "torch_dtype": "float32",
        "use_cache": True,
        **config,
    }


def rotary_frequencies(theta: float, width: int) -> torch.Tensor:
    return 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width)


def llama3_buffers(config: dict) -> dict[str, torch.Tensor]:
    """What some files still hold: frequencies, before they are scaled."""
    frequencies = rotary_frequencies(config["rope_theta"], config["head_dim"])
    return {"model.layers.0.self_attn.rotary_emb.inv_freq": frequencies}


def neox_buffers(config: dict) -> dict[str, torch.Tensor]:
    """The causal mask as booleans, the value of what it hides, and the rotary frequencies."""
    length, head_dim = config["max_position_embeddings"], config["hidden_size"] // config["num_attention_heads"]
    frequencies = rotary_frequencies(config["rotary_emb_base"], int(head_dim * config["rotary_pct"]))
    buffers = {}
    for i in range(config["num_hidden_layers"]):
        root = f"gpt_neox.layers.{i}.attention"
        buffers[f"{root}.bias"] = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
        buffers[f"{root}.masked_bias"] = torch.tensor(-1e9)
        buffers[f"{root}.rotary_emb.inv_freq"] = frequencies.clone()
    return buffers


def neox_config(parallel: bool, **config) -> dict:
    return shared(
        "GPTNeoXForCausalLM",
        "gpt_neox",
        bos_token_id=0,
        eos_token_id=0,
        hidden_act="gelu",
        hidden_size=48,
        intermediate_size=80,
        layer_norm_eps=1e-3,
        max_position_embeddings=128,
        num_attention_heads=3,
        tie_word_embeddings=False,
        use_parallel_residual=parallel,
        **config,
    )


WITH_SYSTEM = [{"role": "system", "content": SYSTEM}, *TURNS]
OLD_SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
CHATML_END = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None, "unk_token": None}

FAMILIES = {
    # no num_key_value_heads, no head_dim, no rope_theta: as many KV heads as heads, hidden / heads, 10000
    "llama": Family(
        config=shared(
            "LlamaForCausalLM",
            "llama",
            bos_token_id=1,
            eos_token_id=2,
            hidden_act="silu",
            hidden_size=48,
            intermediate_size=80,
            max_position_embeddings=512,
            num_attention_heads=4,
            pad_token_id=0,
            rms_norm_eps=1e-3,
            rope_scaling={"factor": 8.0, "type": "linear"},
            tie_word_embeddings=False,
            vocab_size=380,
        ),
        generation={"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        tokenizer=text_tokenizers.llama,
        tokenizer_config={
            "add_bos_token": True,
            "add_eos_token": False,
            "legacy": True,
            "pad_token": None,
            "tokenizer_class": "LlamaTokenizer",
            **OLD_SPECIAL,
        },
        template=text_templates.LLAMA2,
        prompt=WITH_SYSTEM,
        seed=100,
    ),
    # theta and lengths such that of the 8 frequencies 2 stay, 2 are on the ramp and 4 are slowed
    "llama3": Family(
        config=shared(
            "LlamaForCausalLM",
            "llama",
            attention_bias=False,
            attention_dropout=0.0,
            bos_token_id=316,
            eos_token_id=[317, 320, 321],
            head_dim=16,
            hidden_act="silu",
            hidden_size=48,
            intermediate_size=72,
            max_position_embeddings=512,
            mlp_bias=False,
            num_attention_heads=6,
            num_key_value_heads=2,
            pretraining_tp=1,
            rms_norm_eps=1e-3,
            rope_scaling={
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 64,
                "rope_type": "llama3",
            },
            rope_theta=200.0,
            tie_word_embeddings=True,
            vocab_size=322,
        ),
        generation={
            "bos_token_id": 316,
            "do_sample": True,
            "eos_token_id": [317, 320, 321],
            "temperature": 0.6,
            "top_p": 0.9,
        },
        tokenizer=text_tokenizers.llama3,
        tokenizer_config={
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|eot_id|>",
            "model_input_names": ["input_ids", "attention_mask"],
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
        template=text_templates.LLAMA3,
        prompt=WITH_SYSTEM,
        seed=200,
        buffers=llama3_buffers,
    ),
    "mistral": Family(
        config=shared(
            "MistralForCausalLM",
            "mistral",
            attention_dropout=0.0,
            bos_token_id=1,
            eos_token_id=2,
            head_dim=12,
            hidden_act="silu",
            hidden_size=40,
            intermediate_size=88,
            max_position_embeddings=512,
            num_attention_heads=6,
            num_key_value_heads=2,
            rms_norm_eps=1e-3,
            rope_theta=3000.0,
            sliding_window=None,
            tie_word_embeddings=False,
            vocab_size=382,
        ),
        generation={"bos_token_id": 1, "eos_token_id": 2},
        tokenizer=text_tokenizers.mistral,
        tokenizer_config={
            "add_bos_token": True,
            "add_eos_token": False,
            "add_prefix_space": True,
            "additional_special_tokens": [],
            "legacy": False,
            "pad_token": None,
            "tokenizer_class": "LlamaTokenizer",
            "use_default_system_prompt": False,
            **OLD_SPECIAL,
        },
        template=text_templates.MISTRAL,
        prompt=WITH_SYSTEM,
        seed=300,
    ),
    # the sliding window that the config names is not used; no head_dim, as in all files of this family
    "qwen2": Family(
        config=shared(
            "Qwen2ForCausalLM",
            "qwen2",
            attention_dropout=0.0,
            bos_token_id=306,
            eos_token_id=308,
            hidden_act="silu",
            hidden_size=48,
            intermediate_size=72,
            max_position_embeddings=512,
            max_window_layers=1,
            num_attention_heads=6,
            num_key_value_heads=2,
            rms_norm_eps=1e-3,
            rope_theta=1500.0,
            sliding_window=16,
            tie_word_embeddings=True,
            use_sliding_window=False,
            vocab_size=320,
        ),
        generation={
            "bos_token_id": 306,
            "do_sample": True,
            "eos_token_id": [308, 306],
            "pad_token_id": 306,
            "repetition_penalty": 1.1,
            "temperature": 0.7,
            "top_k": 20,
            "top_p": 0.8,
        },
        tokenizer=text_tokenizers.qwen2,
        tokenizer_config={
            "add_prefix_space": False,
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
            "errors": "replace",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            **CHATML_END,
        },
        template=text_templates.QWEN2,
        prompt=TURNS,
        seed=400,
    ),
    "qwen3": Family(
        config=shared(
            "Qwen3ForCausalLM",
            "qwen3",
            attention_bias=False,
            attention_dropout=0.0,
            bos_token_id=306,
            eos_token_id=308,
            head_dim=16,
            hidden_act="silu",
            hidden_size=40,
            intermediate_size=80,
            max_position_embeddings=512,
            max_window_layers=3,
            num_attention_heads=6,
            num_key_value_heads=2,
            rms_norm_eps=1e-3,
            rope_scaling=None,
            rope_theta=5000.0,
            sliding_window=None,
            tie_word_embeddings=False,
            use_sliding_window=False,
            vocab_size=320,
        ),
        generation={
            "bos_token_id": 306,
            "do_sample": True,
            "eos_token_id": [308, 306],
            "pad_token_id": 306,
            "temperature": 0.6,
            "top_k": 20,
            "top_p": 0.95,
        },
        tokenizer=text_tokenizers.qwen3,
        tokenizer_config={
            "add_bos_token": False,
            "add_prefix_space": False,
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
            "errors": "replace",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            **CHATML_END,
        },
        template=text_templates.QWEN3,
        prompt=[
            *WITH_SYSTEM[:2],
            {"role": "assistant", "content": "<think>\nred, then blue\n</think>\n\nA red box, and the blue ball."},
            WITH_SYSTEM[3],
        ],
        seed=500,
    ),
    "gpt_neox": Family(
        config=neox_config(True, rotary_emb_base=700, rotary_pct=0.375, vocab_size=320),
        tokenizer=text_tokenizers.gpt_neox,
        generation={"bos_token_id": 0, "eos_token_id": 0},
        tokenizer_config={
            "add_prefix_space": False,
            "bos_token": "<|endoftext|>",
            "eos_token": "<|endoftext|>",
            "tokenizer_class": "GPTNeoXTokenizer",
            "unk_token": "<|endoftext|>",
        },
        prompt=f"{SYSTEM}\n\n  What is in view? A red box.\nShould the robot stop at room 1030?",
        seed=600,
        buffers=neox_buffers,
        hub_names={"lm_head.": "embed_out."},
    ),
    # neither rotary_pct nor rotary_emb_base: a quarter of a head, 10000
    # biases of the convolutions and a wider one, which no published checkpoint has; which layers attend as older files say it
    "lfm2": Family(
        config=shared(
            "Lfm2ForCausalLM",
            "lfm2",
            block_auto_adjust_ff_dim=False,
            block_ff_dim=72,
            bos_token_id=1,
            conv_L_cache=4,
            conv_bias=True,
            eos_token_id=7,
            full_attn_idxs=[1, 3],
            hidden_size=48,
            intermediate_size=72,
            max_position_embeddings=512,
            norm_eps=1e-3,
            num_attention_heads=6,
            num_key_value_heads=2,
            pad_token_id=0,
            rope_theta=2500.0,
            tie_word_embeddings=True,
            vocab_size=320,
        )
        | {"num_hidden_layers": 4},
        prompt=[1, 6, 220, 37, 111, 250, 9, 84, 13, 199, 40, 40, 77, 301, 12, 7, 5, 63],
        seed=900,
    ),
    # which layers attend is said by their distance, and nothing of how much of a head turns: a quarter
    "qwen3_5_text": Family(
        config=shared(
            "Qwen3_5ForCausalLM",
            "qwen3_5_text",
            attn_output_gate=True,
            eos_token_id=7,
            full_attention_interval=2,
            head_dim=16,
            hidden_act="silu",
            hidden_size=40,
            intermediate_size=56,
            linear_conv_kernel_dim=3,
            linear_key_head_dim=12,
            linear_num_key_heads=3,
            linear_num_value_heads=3,
            linear_value_head_dim=8,
            mamba_ssm_dtype="float32",
            max_position_embeddings=512,
            num_attention_heads=6,
            num_key_value_heads=2,
            rms_norm_eps=1e-3,
            rope_parameters={
                "mrope_interleaved": True,
                "mrope_section": [1, 1, 0],
                "rope_theta": 50.0,
                "rope_type": "default",
            },
            tie_word_embeddings=True,
            vocab_size=320,
        )
        | {"num_hidden_layers": 4},
        prompt=[6, 220, 37, 111, 250, 9, 84, 13, 199, 40, 40, 77, 301, 12, 5, 63, 8, 91, 174, 260],
        seed=1000,
    ),
    "gpt_neox_serial": Family(
        config=neox_config(False, vocab_size=96),
        prompt=list(range(3, 73)),
        seed=700,
        hub_names={"lm_head.": "embed_out."},
    ),
}
