"""A text encoder as transformers saves them: random weights, and word pieces of a few reports."""

from pathlib import Path

from vilmedic_ssl.data.tokenizers import train_tokenizer

REPORTS = [
    "Heart size is normal. The lungs are clear. No pleural effusion or pneumothorax.",
    "Large left pleural effusion. Right lower lobe consolidation. Mild cardiomegaly.",
]


def save_bert(folder: Path, hidden_size: int = 32) -> Path:
    """A BERT of four small layers in `folder`, written once; its vectors are `hidden_size` wide."""
    if not folder.is_dir():
        from transformers import BertConfig, BertModel

        tokenizer = train_tokenizer(REPORTS, 200)
        sizes = {"num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
        BertModel(
            BertConfig(hidden_size=hidden_size, vocab_size=len(tokenizer), **sizes)
        ).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder
