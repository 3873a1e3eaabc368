"""Core's own parts, registered by the door that every plugin uses."""

from __future__ import annotations

from collections.abc import Mapping

from curvlab.registry.hookspecs import hookimpl
from curvlab.registry.registry import Registry

api_version = "1.0"

#: kind -> name -> class, below ``curvlab``, and what it is
PARTS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "layer": {
        "linear": ("model.readers.linear:LinearReader", "nn.Linear, on any leading shape"),
        "conv": ("model.readers.conv:ConvReader", "nn.Conv1d, 2d and 3d, in groups too"),
        "transposed-conv": ("model.readers.transposed:ConvTransposeReader", "nn.ConvTranspose1d, 2d and 3d"),
        "embedding": ("model.readers.embedding:EmbeddingReader", "nn.Embedding, by one-hot rows"),
        "embedding-bag": ("model.readers.embedding:EmbeddingBagReader", "nn.EmbeddingBag"),
        "norm": ("model.readers.norm:NormReader", "scales and shifts of every norm"),
        "bilinear": ("model.readers.bilinear:BilinearReader", "nn.Bilinear"),
        "attention": (
            "model.readers.attention:AttentionReader",
            "nn.MultiheadAttention: query, key, value, output",
        ),
        "recurrent": ("model.readers.recurrent:RecurrentReader", "LSTM, GRU, RNN and their cells"),
        "bare-parameters": (
            "model.readers.bare:BareReader",
            "weights, scales and shifts in modules of one's own",
        ),
        "prelu": ("model.readers.prelu:PReLUReader", "the slopes of nn.PReLU"),
    },
    "structure": {
        "dense": ("structures.dense:Dense", "every entry of the factor"),
        "diagonal": ("structures.diagonal:Diagonal", "the factor's diagonal alone"),
    },
    "estimator": {
        "gauss-newton": ("parts.gauss_newton:GaussNewton", "the GGN of the batch, by products"),
    },
    "preconditioner": {
        "identity": ("parts.identity:Identity", "the gradient as it is"),
        "inverted": ("parts.inverted:Inverted", "an estimate of C, inverted now and then"),
        "iterative": ("parts.iterative:Iterative", "a Krylov solve of C + λI every step"),
        "eigenbasis": ("parts.eigenbasis:Eigenbasis", "second moments in the eigenbasis of an estimate of C"),
        "grafted": ("parts.grafted:Grafted", "the direction of one preconditioner, the lengths of another"),
        "routed": ("parts.routed:Routed", "a preconditioner per pattern of block names"),
    },
    "inverse": {
        "cholesky": ("parts.inverses:Cholesky", "through Cholesky factors of the damped estimate"),
        "eigen": ("parts.inverses:Eigen", "through eigenvalues, damping the product exactly"),
        "diagonal": ("parts.inverses:DiagonalInverse", "entry by entry, for estimates that are diagonal"),
    },
    "krylov": {
        "cg": ("parts.krylov:ConjugateGradients", "conjugate gradients"),
    },
    "damping": {
        "constant": ("parts.damping:Constant", "one λ, or a schedule of it"),
        "levenberg-marquardt": (
            "parts.damping:LevenbergMarquardt",
            "λ follows the ratio of actual to predicted reduction",
        ),
    },
    "step": {
        "rate": ("parts.steps:Rate", "a learning rate"),
        "armijo": ("parts.steps:Armijo", "the first rate that decreases the loss enough"),
        "grid": ("parts.steps:Grid", "the best of many rates, each half of the last"),
        "quadratic-model": ("parts.steps:QuadraticModel", "the minimizer of the local model"),
    },
    "schedule": {
        "cosine": ("parts.schedules:Cosine", "down along half a cosine"),
        "linear": ("parts.schedules:Linear", "along a straight line"),
        "power": ("parts.schedules:Power", "down along a power of what is left"),
        "warmup": ("parts.schedules:WarmUp", "a factor that rises to 1"),
        "warmup-stable-decay": ("parts.schedules:WarmUpStableDecay", "up, along, and down in the last steps"),
        "product": ("parts.composed_schedules:Product", "schedules and numbers, multiplied"),
        "sequence": ("parts.composed_schedules:Sequence", "schedules and numbers, one after the other"),
    },
    "transform": {
        "ema": ("parts.transforms:Ema", "exponential moving average"),
        "momentum": ("parts.transforms:Momentum", "heavy-ball momentum"),
        "weight-decay": ("parts.transforms:WeightDecay", "adds a multiple of the parameters"),
        "clip": ("parts.transforms:Clip", "bounds the Euclidean norm"),
        "clip-entries": ("parts.transforms:ClipEntries", "every entry in units of a scale, clipped to ±1"),
        "norm-constraint": ("parts.transforms:NormConstraint", "bounds the update's curvature norm"),
        "graft": ("parts.graft:Graft", "keeps each block's direction, takes its length from another rule"),
        "nesterov": ("parts.nesterov:Nesterov", "moving average with the newest vector counted twice"),
        "cautious": (
            "parts.cautious:Cautious",
            "weight decay, and on request updates, only where signs agree",
        ),
        "radial-brake": (
            "parts.radial:RadialBrake",
            "shrinks the update's component along each weight matrix",
        ),
        "row-floor": (
            "parts.row_floor:RowFloor",
            "lengthens rows of the update that are short beside their weights",
        ),
        "hyperball": (
            "parts.hyperball:Hyperball",
            "keeps each weight matrix on the sphere of its first norm",
        ),
    },
    "sampler": {
        "uniform": ("parts.samplers:Uniform", "mini-batches without replacement, reshuffled each epoch"),
        "sequential": (
            "parts.samplers:Sequential",
            "the same batches in every epoch, in the order of the examples",
        ),
        "full-batch": ("parts.samplers:FullBatch", "every example, every step"),
        "subsampled-curvature": (
            "parts.samplers:SubsampledCurvature",
            "curvature from a part of the gradient's examples",
        ),
    },
    "average": {
        "ema": ("parts.weight_means:WeightEma", "exponential moving average of the weights"),
        "tail-ema": (
            "parts.weight_means:TailEma",
            "the same of the end of a run, mixed with the trained weights",
        ),
        "schedule-free": (
            "parts.schedule_free:ScheduleFree",
            "gradients between the method's iterates and their average",
        ),
    },
    "callback": {
        "early-stop": ("parts.early_stop:EarlyStop", "ends a run whose training loss no longer falls"),
    },
    "reporter": {
        "console": ("reporting.console:Console", "live progress on a terminal, lines elsewhere"),
        "quiet": ("reporting.quiet:Quiet", "nothing"),
    },
    "loss": {
        "cross-entropy": ("objectives.losses.cross_entropy:CrossEntropy", "softmax cross-entropy on logits"),
        "nll": (
            "objectives.losses.cross_entropy:NegativeLogLikelihood",
            "minus the label's log-probability, on log-probabilities",
        ),
        "language-model": (
            "objectives.losses.language_model:LanguageModel",
            "cross-entropy of each token on those before it",
        ),
        "binary-cross-entropy": (
            "objectives.losses.binary:BinaryCrossEntropy",
            "binary cross-entropy on logits, by coordinate",
        ),
        "mean-squared-error": ("objectives.losses.regression:MeanSquaredError", "squared differences"),
        "huber": ("objectives.losses.regression:Huber", "squares that turn into lines"),
        "smooth-l1": ("objectives.losses.regression:SmoothL1", "Huber's loss over where it turns"),
        "poisson-nll": (
            "objectives.losses.poisson:PoissonNegativeLogLikelihood",
            "negative log-likelihood of counts",
        ),
        "gaussian-nll": (
            "objectives.losses.gaussian:GaussianNegativeLogLikelihood",
            "negative log-likelihood of a mean and a variance",
        ),
        "heads": ("objectives.losses.heads:Heads", "a loss for each output, weighted and summed"),
    },
}

FASHION = "Debian's package dataset-fashion-mnist, or a folder with its IDX files"

#: task -> class, below ``curvlab``, what it is, and where its data come from
TASKS: Mapping[str, tuple[str, str, str]] = {
    "quadratic": (
        "tasks.quadratic:Quadratic",
        "a quadratic of chosen spectrum and known optimum",
        "computed",
    ),
    "pde": (
        "pde.task:OwnProblem",
        "a differential equation of your own, as a Python function, solved by a network",
        "points drawn from a seed",
    ),
    "teacher-student": (
        "tasks.teacher_student:TeacherStudent",
        "regression on the outputs of a network of the same shape",
        "computed",
    ),
    "curves": ("tasks.curves:Curves", "28 × 28 images of curves through a bottleneck of 6", "computed"),
    "digits": ("tasks.digits:Digits", "8 × 8 handwritten digits, an MLP", "inside scikit-learn"),
    "fashion-mnist": ("tasks.fashion_mnist:FashionMnist", "28 × 28 clothes, an MLP", FASHION),
    "fashion-autoencoder": (
        "tasks.fashion_autoencoder:FashionAutoencoder",
        "28 × 28 clothes through a bottleneck of 30",
        FASHION,
    ),
    "fashion-convnet": (
        "tasks.fashion_convnet:FashionConvnet",
        "28 × 28 clothes, three convolutions and two linear layers",
        FASHION,
    ),
    "fashion-vit": ("tasks.fashion_vit:FashionVit", "28 × 28 clothes, a vision transformer", FASHION),
    "character-gpt": (
        "tasks.character_gpt:CharacterGpt",
        "the next character of English text, a transformer decoder",
        "Debian's package bible-kjv, or a text file",
    ),
}


@hookimpl
def curvlab_register(registry: Registry) -> None:
    """Every part of core, by kind."""
    for kind, parts in PARTS.items():
        for name, (factory, summary) in parts.items():
            registry.add(kind, name, f"curvlab.{factory}", summary=summary)
    for dtype in ("float32", "float64"):
        full = "curvlab.precision.full:Full"
        registry.add("precision", dtype, full, summary=f"everything in {dtype}", dtype_name=dtype)
    for name, (factory, summary, source) in TASKS.items():
        registry.add("task", name, f"curvlab.{factory}", summary=summary, source=source)
