import re
def sub(p, pairs):
    s=open(p).read()
    for a,b in pairs:
        assert a in s,(p,a)
        s=s.replace(a,b)
    open(p,'w').write(s)
sub('src/stream/answer.rs',[
('use crate::model::ModelError;\n','use crate::model::ModelError;\nuse crate::stream::grammar::Thought;\n'),
('''    /// Tokens generated, the end token included.
    pub output_tokens: usize,''','''    /// Tokens generated, the end token included; those of a thought in front of the answer are not.
    pub output_tokens: usize,'''),
('''    /// The generated ids, the end token included.
    pub token_ids''','''    /// The generated ids, the end token included, without a thought.
    pub token_ids'''),
('''    logprobs: f64,
    pieces: u32,
    tokenizer: Arc<ChatTokenizer>,
    text: TextStream,
}
''','''    logprobs: f64,
    pieces: u32,
    tokenizer: Arc<ChatTokenizer>,
    text: TextStream,
    thought: Thought,
    /// Tokens generated, those of a thought included.
    generated: usize,
}
'''),
('''    /// An answer to `instruction` of which nothing has been generated; `answer` holds what the session knows beforehand.
    pub fn new(answer: Answer, instruction: &Instruction, tokenizer: Arc<ChatTokenizer>) -> Self {
        Self {
            answer,
            tokenizer,
            text: TextStream::default(),''','''    /// An answer to `instruction` of which nothing has been generated; `answer` holds what the session knows beforehand, `thought`
    /// what the answer may begin with.
    pub fn new(
        answer: Answer,
        instruction: &Instruction,
        tokenizer: Arc<ChatTokenizer>,
        thought: Thought,
    ) -> Self {
        Self {
            answer,
            tokenizer,
            thought,
            generated: 0,
            text: TextStream::default(),'''),
('''            .get_or_insert_with(|| self.received.elapsed());
        self.answer.token_ids.push(choice.token);
        self.answer.output_tokens += 1;
        self.logprobs += f64::from(choice.logprob);
    }
''','''            .get_or_insert_with(|| self.received.elapsed());
        self.generated += 1;
        if !self.thought.is_thinking() {
            self.answer.token_ids.push(choice.token);
            self.answer.output_tokens += 1;
            self.logprobs += f64::from(choice.logprob);
        }
    }

    /// Tokens generated, those of a thought included.
    pub fn generated(&self) -> usize {
        self.generated
    }
'''),
('''        let added = self.text.push(token, &self.tokenizer)?;
        let added = self.append(&added);
''','''        let added = self.text.push(token, &self.tokenizer)?;
        let thought = self.thought.is_thinking();
        let added = self.thought.answer_in(&added);
        if !thought && self.thought.is_thinking() {
            // What has been counted is the mark that opens the thought.
            self.answer.token_ids.clear();
            self.answer.output_tokens = 0;
            self.logprobs = 0.0;
        }
        let added = self.append(&added);
'''),
('''        let rest = std::mem::take(&mut self.text).finish(&self.tokenizer);
        let rest = self.append(&rest.unwrap_or_default());
''','''        let rest = std::mem::take(&mut self.text).finish(&self.tokenizer);
        let mut rest = self.thought.answer_in(&rest.unwrap_or_default());
        rest.push_str(&self.thought.rest());
        let rest = self.append(&rest);
'''),
])
s=open('src/stream/answer.rs').read()
s+='''
#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::checkpoint::Checkpoint;

    /// An answer that is generated as `said`, token by token, with its pieces.
    fn answered(open: bool, said: &str) -> (Answer, Vec<String>) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny_smolvlm");
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let tokenizer = Arc::new(ChatTokenizer::load(&checkpoint).unwrap());
        let instruction = Instruction {
            id: "a".to_string(),
            text: "What is it?".to_string(),
            max_new_tokens: 0,
            ephemeral: false,
            received: Instant::now(),
        };
        let answer = Answer {
            id: "a".to_string(),
            text: String::new(),
            finish: FinishReason::Error,
            error: None,
            prompt_tokens: 0,
            vision_tokens: 0,
            output_tokens: 0,
            time_to_first_token: None,
            latency: Duration::ZERO,
            newest_frame: None,
            oldest_frame_ns: None,
            frames_seen: 1,
            mean_logprob: 0.0,
            token_ids: Vec::new(),
        };
        let mut run = Generation::new(answer, &instruction, tokenizer.clone(), Thought::new(open));
        let mut pieces = Vec::new();
        let ids = tokenizer.encode_text(said).unwrap();
        for &token in &ids {
            let logprob = -1.0;
            run.chose(Choice { token, logprob });
            run.emit(token, &mut |delta| pieces.push(delta.text)).unwrap();
        }
        assert_eq!(run.generated(), ids.len());
        let answer = run.finish(FinishReason::Stop, None, &mut |delta| pieces.push(delta.text));
        (answer, pieces)
    }

    #[test]
    fn a_thought_is_in_no_piece_of_an_answer_and_does_not_count() {
        let plain = answered(false, "a red box").0;
        for (open, said) in [
            (false, "<think>\\nis it blue? no\\n</think>\\n\\na red box"),
            (true, "is it blue? no\\n</think>\\n\\na red box"),
        ] {
            let (answer, pieces) = answered(open, said);
            assert_eq!(answer.text, "a red box");
            assert_eq!(pieces.concat(), answer.text);
            assert!(answer.output_tokens < plain.output_tokens + 4, "{}", answer.output_tokens);
            assert_eq!(answer.token_ids.len(), answer.output_tokens);
            assert_eq!(answer.mean_logprob, -1.0);
        }
        let (answer, _) = answered(false, "<think>for ever and ever");
        assert_eq!((answer.text.as_str(), answer.output_tokens), ("", 0));
        assert_eq!(answered(false, "<thinner").0.text, "<thinner");
    }
}
'''
open('src/stream/answer.rs','w').write(s)
sub('src/stream/session/ask.rs',[
('Generation::new(answer, instruction, self.model.tokenizer.clone())','let thought = self.state.stream.grammar.thought();\n        Generation::new(answer, instruction, self.model.tokenizer.clone(), thought)'),
('let last = run.answer.output_tokens == longest;','let last = run.generated() == longest;'),
('let tokens = run.answer.output_tokens.max(1) as u32;','let tokens = run.generated().max(1) as u32;'),
])
sub('src/stream/session/beginning.rs',[
('grammar::{ChatFormat, Grammar}','grammar::{Chat, Grammar}'),
("    format: &'static ChatFormat,\n    cache","    chat: Chat,\n    cache"),
("        format: &'static ChatFormat,\n","        chat: Chat,\n"),
("Grammar::new(format).frame","Grammar::new(chat.clone()).frame"),
("            format,\n","            chat,\n"),
("Grammar::new(self.format)","Grammar::new(self.chat.clone())"),
])
sub('src/stream/session/mod.rs',[
('use super::grammar::ChatFormat;','use super::grammar::Chat;'),
('let format = ChatFormat::of(&model)?;','let chat = Chat::of(&model)?;'),
('PromptCheck::new(&model, format, &config)?','PromptCheck::new(&model, chat.clone(), &config)?'),
('format.borders.iter()','chat.format.borders.iter()'),
])
