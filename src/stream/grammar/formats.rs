//! The chat formats of the families as the stream uses them, in one table. docs/stream.md describes the layout.

/// How a frame's time is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeLabel {
    None,
    /// `MM:SS` in whole seconds, in the place of the braces.
    MinutesSeconds(&'static str),
    /// Seconds with one decimal, in the place of the braces.
    Seconds(&'static str),
    /// No time, but the number of the frame within its user turn, from 1 on, in the place of the braces.
    Number(&'static str),
}

/// The texts around the pieces of a conversation.
#[derive(Debug, Clone, Copy)]
pub struct ChatFormat {
    pub name: &'static str,
    /// Families ([`crate::model::family::Family::name`]) that use it.
    families: &'static [&'static str],
    /// Begins the stream.
    pub open: &'static str,
    /// Around the system prompt.
    pub system: (&'static str, &'static str),
    /// In the place of the system turn when there is no system prompt, where the checkpoint's template does not show it.
    pub no_system: &'static str,
    /// Begins a user turn.
    pub user: &'static str,
    /// Between the beginning of a user turn and a text without frames in front.
    pub text_alone: &'static str,
    /// In front of a frame.
    pub time: TimeLabel,
    /// Between the time and a frame's image.
    pub before_frame: &'static str,
    /// Behind a frame.
    pub after_frame: &'static str,
    /// Between frames and the text that follows them.
    pub text_after_frames: &'static str,
    /// Ends a user turn and begins the answer.
    pub answer: &'static str,
    /// What the chat template writes instead of `answer` in front of an answer that has been given.
    pub template_answer: &'static str,
    /// What the chat template puts in the place of the thought in front of an answer that has been given.
    pub past_thought: &'static str,
    /// Ends an answer: what the model was trained to say.
    pub end: &'static str,
    /// What the chat template writes instead of `end`, where that is something else.
    pub template_end: &'static str,
    /// Between the end of an answer and the next turn.
    pub after_answer: &'static str,
    /// Control tokens at the borders of turns.
    pub borders: &'static [&'static str],
}

const CHATML: ChatFormat = ChatFormat {
    name: "ChatML",
    families: &["LLaVA-OneVision", "LLaVA-NeXT"],
    open: "",
    system: ("<|im_start|>system\n", "<|im_end|>\n"),
    no_system: "",
    user: "<|im_start|>user\n",
    text_alone: "",
    time: TimeLabel::None,
    before_frame: "",
    after_frame: "\n",
    text_after_frames: "",
    answer: "<|im_end|>\n<|im_start|>assistant\n",
    template_answer: "<|im_end|>\n<|im_start|>assistant\n",
    past_thought: "",
    end: "<|im_end|>",
    template_end: "<|im_end|>",
    after_answer: "\n",
    borders: &["<|im_start|>", "<|im_end|>"],
};

const MISTRAL: ChatFormat = ChatFormat {
    name: "Mistral",
    families: &["LLaVA-NeXT"],
    open: "",
    system: ("<<SYS>>\n", "\n<</SYS>>\n\n"),
    no_system: "",
    user: "[INST] ",
    text_alone: "",
    time: TimeLabel::None,
    before_frame: "",
    after_frame: "\n",
    text_after_frames: "",
    answer: " [/INST]",
    template_answer: " [/INST] ",
    past_thought: "",
    end: "</s>",
    template_end: "</s>",
    after_answer: " ",
    borders: &["</s>"],
};

/// A space behind the role, no line break between turns; the SigLIP checkpoints of LLaVA-1.5's family have it too.
const ONEVISION: ChatFormat = ChatFormat {
    name: "LLaVA-OneVision",
    families: &["LLaVA-OneVision", "LLaVA-1.5"],
    system: ("<|im_start|>system \n", "<|im_end|>"),
    user: "<|im_start|>user ",
    text_alone: "\n",
    text_after_frames: "\n",
    answer: "<|im_end|><|im_start|>assistant\n",
    template_answer: "<|im_end|><|im_start|>assistant \n",
    after_answer: "",
    ..CHATML
};

const FORMATS: [ChatFormat; 13] = [
    ChatFormat {
        name: "SmolVLM",
        families: &["SmolVLM"],
        open: "<|im_start|>",
        system: ("System: ", "<end_of_utterance>\n"),
        no_system: "",
        user: "User:",
        text_alone: " ",
        time: TimeLabel::MinutesSeconds("\nFrame from {}:"),
        before_frame: "",
        after_frame: "",
        text_after_frames: "\n\n",
        answer: "<end_of_utterance>\nAssistant:",
        template_answer: "<end_of_utterance>\nAssistant: ",
        past_thought: "",
        end: "<end_of_utterance>",
        template_end: "<end_of_utterance>",
        after_answer: "\n",
        borders: &["<|im_start|>", "<end_of_utterance>"],
    },
    ChatFormat {
        name: "Vicuna",
        families: &["LLaVA-1.5", "LLaVA-NeXT"],
        open: "",
        system: ("", " "),
        no_system: "",
        user: "USER: ",
        text_alone: "",
        time: TimeLabel::None,
        before_frame: "",
        after_frame: "\n",
        text_after_frames: "",
        answer: " ASSISTANT:",
        template_answer: " ASSISTANT: ",
        past_thought: "",
        end: "</s>",
        template_end: " ",
        after_answer: "",
        borders: &["</s>"],
    },
    MISTRAL,
    ChatFormat {
        name: "Mistral, the end of an answer misspelt",
        template_end: "<\\s>",
        ..MISTRAL
    },
    ChatFormat {
        name: "Llama 3",
        families: &["LLaVA-NeXT"],
        open: "",
        system: (
            "<|start_header_id|>system<|end_header_id|>\n\n\n",
            "<|eot_id|>",
        ),
        no_system: "",
        user: "<|start_header_id|>user<|end_header_id|>\n\n",
        text_alone: "\n",
        time: TimeLabel::None,
        before_frame: "",
        after_frame: "",
        text_after_frames: "\n",
        answer: "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        template_answer: "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n\n",
        past_thought: "",
        end: "<|eot_id|>",
        template_end: "<|eot_id|>",
        after_answer: "",
        borders: &["<|start_header_id|>", "<|eot_id|>"],
    },
    ONEVISION,
    ChatFormat {
        name: "LLaVA-OneVision, no line break behind an image",
        after_frame: "",
        ..ONEVISION
    },
    CHATML,
    ChatFormat {
        name: "InternVL",
        families: &["InternVL"],
        time: TimeLabel::Number("Frame{}: "),
        ..CHATML
    },
    ChatFormat {
        name: "LFM2-VL",
        families: &["LFM2-VL"],
        open: "<|startoftext|>",
        after_frame: "",
        borders: &["<|startoftext|>", "<|im_start|>", "<|im_end|>"],
        ..CHATML
    },
    ChatFormat {
        name: "Qwen2-VL",
        families: &["Qwen2-VL", "Qwen2.5-VL"],
        no_system: "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
        before_frame: "<|vision_start|>",
        after_frame: "<|vision_end|>",
        ..CHATML
    },
    ChatFormat {
        name: "Qwen3-VL",
        families: &["Qwen3-VL", "Cosmos 3", "Qwen3.5"],
        time: TimeLabel::Seconds("<{} seconds>"),
        before_frame: "<|vision_start|>",
        after_frame: "<|vision_end|>",
        ..CHATML
    },
    // Answers that have been given stand behind a thought without words.
    ChatFormat {
        name: "Cosmos 3 Edge",
        families: &["Cosmos 3 Edge"],
        no_system: "<|im_start|>system\n<|im_end|>\n",
        time: TimeLabel::Seconds("<{} seconds>"),
        before_frame: "<|vision_start|>",
        after_frame: "<|vision_end|>",
        past_thought: "<think></think>",
        ..CHATML
    },
];

impl ChatFormat {
    /// The rows of a family.
    pub fn of_family(name: &str) -> impl Iterator<Item = &'static Self> + Clone + '_ {
        let has = move |format: &&Self| format.families.contains(&name);
        FORMATS.iter().filter(has)
    }
}
