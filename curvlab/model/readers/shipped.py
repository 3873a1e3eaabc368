"""The readers that come with the core, in the order in which they are tried."""

from __future__ import annotations

from curvlab.model.readers.attention import AttentionReader
from curvlab.model.readers.bare import BareReader
from curvlab.model.readers.bilinear import BilinearReader
from curvlab.model.readers.conv import ConvReader
from curvlab.model.readers.embedding import EmbeddingBagReader, EmbeddingReader
from curvlab.model.readers.linear import LinearReader
from curvlab.model.readers.norm import NormReader
from curvlab.model.readers.prelu import PReLUReader
from curvlab.model.readers.recurrent import RecurrentReader
from curvlab.model.readers.transposed import ConvTransposeReader
from curvlab.protocols.reader import LayerReader

SHIPPED: tuple[LayerReader, ...] = (
    LinearReader(),
    ConvReader(),
    ConvTransposeReader(),
    EmbeddingReader(),
    EmbeddingBagReader(),
    NormReader(),
    BilinearReader(),
    PReLUReader(),
    AttentionReader(),
    RecurrentReader(),
    BareReader(),
)
