//! Chat templates of decoders that know no images, for a vision tower beside them.

/// Puts the pieces of a message together to the text that a template of texts alone expects, images in front; what begins a text is
/// left to the tokenizer.
const JOINED: &str = "\
{%- set bos_token = '' -%}
{%- set joined = namespace(messages=[]) -%}
{%- for message in messages -%}
  {%- set turn = namespace(text='') -%}
  {%- if message['content'] is string -%}
    {%- set turn.text = message['content'] -%}
  {%- else -%}
    {%- for piece in message['content'] -%}
      {%- if piece['type'] == 'image' -%}
        {%- set turn.text = turn.text ~ '<image>\\n' -%}
      {%- else -%}
        {%- set turn.text = turn.text ~ piece['text'] -%}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {%- set joined.messages = joined.messages + [{'role': message['role'], 'content': turn.text}] -%}
{%- endfor -%}
{%- set messages = joined.messages -%}
";

/// The conversation of Vicuna, which LLaVA was trained on, for files without a template.
const VICUNA: &str = "\
{%- for message in messages -%}
  {%- if message['role'] != 'system' -%}{{ message['role'] | upper }}{{ ': ' }}{%- endif -%}
  {{ message['content'] }}{{ ' ' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
";

/// A template for messages with images from the decoder's, if it has one.
pub fn with_images(template: Option<&str>) -> String {
    match template {
        Some(template) if template.contains("image") => template.to_string(),
        Some(texts_alone) => format!("{JOINED}{texts_alone}"),
        None => format!("{JOINED}{VICUNA}"),
    }
}
