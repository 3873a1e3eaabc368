"""The networks of the study of models, as their libraries make them: random weights, two layers, width 64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import model_data as data
import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import GCN

WIDTH, LAYERS, HEADS = 64, 2, 4
CLASSES = 10
#: rates of all methods, and those for networks that AdamW trains best at high ones
RATES, HIGH = (3e-4, 1e-3, 3e-3, 1e-2), (1e-3, 3e-3, 1e-2, 3e-2)


@dataclass(frozen=True)
class Network:
    """A network, its data, and its loss in a plain loop."""

    title: str
    task: str  #: what it learns, as the page says it
    source: Callable[[], data.Source]
    make: Callable[[], nn.Module]
    loss: Callable[[nn.Module, data.Batch], Tensor]
    batch: int
    reduction: str  #: as ``curvlab.optimizer`` calls it
    rates: tuple[float, ...] = RATES


def own_loss(model: nn.Module, batch: data.Batch) -> Tensor:
    """The loss that a model of transformers returns when it is given labels."""
    loss: Tensor = model(**batch).loss
    return loss


def gpt2() -> nn.Module:
    """The head is the embedding."""
    config = hf.GPT2Config(
        vocab_size=data.tokens(), n_positions=data.WINDOW, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return hf.GPT2LMHeadModel(config)


def bert() -> nn.Module:
    """The head is the embedding, with a bias of its own."""
    config = hf.BertConfig(
        vocab_size=data.SPECIAL + data.GRAYS, max_position_embeddings=data.PIXELS**2, pad_token_id=data.PAD,
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
    )  # fmt: skip
    return hf.BertForMaskedLM(config)


def llama() -> nn.Module:
    """Two heads of keys and values for four of queries."""
    config = hf.LlamaConfig(
        vocab_size=data.tokens(), max_position_embeddings=data.WINDOW, hidden_size=WIDTH,
        intermediate_size=3 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return hf.LlamaForCausalLM(config)


def t5() -> nn.Module:
    """One embedding for the encoder, the decoder and the head."""
    config = hf.T5Config(
        vocab_size=data.tokens(), d_model=WIDTH, d_kv=WIDTH // HEADS, d_ff=4 * WIDTH, num_layers=LAYERS,
        num_heads=HEADS, pad_token_id=data.PAD, decoder_start_token_id=data.PAD, eos_token_id=None,
    )  # fmt: skip
    return hf.T5ForConditionalGeneration(config)


def vit() -> nn.Module:
    """Patches of 7 × 7 pixels, and a token for the class."""
    config = hf.ViTConfig(
        image_size=28, patch_size=7, num_channels=1, hidden_size=WIDTH, intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_labels=CLASSES,
    )  # fmt: skip
    return hf.ViTForImageClassification(config)


def resnet18() -> nn.Module:
    """ResNet-18 with a quarter of its channels."""
    config = hf.ResNetConfig(
        num_channels=1, embedding_size=WIDTH // 4, hidden_sizes=[WIDTH // 4, WIDTH // 2, WIDTH, 2 * WIDTH],
        depths=[2, 2, 2, 2], layer_type="basic", num_labels=CLASSES,
    )  # fmt: skip
    return hf.ResNetForImageClassification(config)


class Restorer(nn.Module):
    """``nn.Transformer`` between embeddings and a head: tokens ``[n, t]`` to logits ``[n, u, c]``."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(data.tokens(), WIDTH)
        self.position = nn.Embedding(data.WINDOW, WIDTH)
        self.transformer = nn.Transformer(
            WIDTH, HEADS, LAYERS, LAYERS, dim_feedforward=4 * WIDTH, batch_first=True
        )
        self.transformer.encoder.use_nested_tensor = False  # torch warns of them in evaluation
        self.head = nn.Linear(WIDTH, data.tokens())

    def forward(self, source: Tensor, absent: Tensor, target: Tensor) -> Tensor:
        """``absent`` marks the source's padding; ``target`` is shifted by one, ``PAD`` first."""
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        hidden = self.transformer(
            self._embedded(source), self._embedded(target), tgt_mask=causal, tgt_is_causal=True,
            src_key_padding_mask=absent.float().masked_fill(absent, -torch.inf),
        )  # fmt: skip
        logits: Tensor = self.head(hidden)
        return logits

    def _embedded(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        embedded: Tensor = self.embed(tokens) + self.position(positions)
        return embedded


def restoring_loss(model: nn.Module, batch: data.Batch) -> Tensor:
    """Mean cross-entropy of the text's characters, each from the source and those before it."""
    labels = batch["labels"]
    shifted = F.pad(labels[:, :-1], (1, 0), value=data.PAD)
    logits = model(batch["input_ids"], batch["attention_mask"] == 0, shifted)
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


class Tagger(nn.Module):
    """A bidirectional LSTM: tokens ``[n, t]`` to logits ``[n, t, c]``."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(data.tokens(plain=True), WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH // 2, LAYERS, batch_first=True, bidirectional=True)
        self.head = nn.Linear(WIDTH, data.tags())

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.lstm(self.embed(tokens))[0])
        return logits


def tagging_loss(model: nn.Module, batch: data.Batch) -> Tensor:
    """Mean cross-entropy of all tags."""
    return F.cross_entropy(model(batch["input_ids"]).flatten(0, 1), batch["labels"].flatten())


def gcn() -> nn.Module:
    """Three convolutions of torch_geometric."""
    return GCN(64, WIDTH, num_layers=LAYERS + 1, out_channels=CLASSES)


def graph_loss(model: nn.Module, batch: data.Batch) -> Tensor:
    """Mean cross-entropy of the nodes whose labels are known."""
    outputs = model(batch["x"], batch["edge_index"])
    return F.cross_entropy(outputs, batch["labels"], ignore_index=data.IGNORED)


CHARACTERS, IMAGES = "King James text", "Fashion-MNIST"
RESTORING = f"{CHARACTERS}: small letters to the text"

NETWORKS = {
    "gpt2": Network(
        "GPT-2", f"{CHARACTERS}: next character", data.next_characters, gpt2, own_loss, 16, "mean-tokens"
    ),
    "bert": Network(
        "BERT", f"{IMAGES} in 7 × 7: hidden pixels", data.hidden_pixels, bert, own_loss, 16, "mean-tokens"
    ),
    "llama": Network(
        "Llama", f"{CHARACTERS}: next character", data.next_characters, llama, own_loss, 16, "mean-tokens"
    ),
    "t5": Network("T5", RESTORING, data.restored, t5, own_loss, 8, "mean-tokens"),
    "transformer": Network(
        "`nn.Transformer`", RESTORING, data.restored, Restorer, restoring_loss, 8, "mean-tokens"
    ),
    "lstm": Network(
        "LSTM tagger", f"{CHARACTERS}: capitals and punctuation", data.tagged, Tagger, tagging_loss, 16,
        "mean-tokens", HIGH,
    ),
    "vit": Network("ViT", f"{IMAGES}: class", data.clothes, vit, own_loss, 64, "mean"),
    "resnet18": Network("ResNet-18", f"{IMAGES}: class", data.clothes, resnet18, own_loss, 64, "mean", HIGH),
    "gcn": Network("GCN", "graph of digits: class", data.neighbors, gcn, graph_loss, 1, "mean", HIGH),
}  # fmt: skip
