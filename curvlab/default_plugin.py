"""Core's own parts, registered by the door that every plugin uses."""

from __future__ import annotations

from curvlab.registry.hookspecs import hookimpl
from curvlab.registry.registry import Registry

api_version = "1.0"


@hookimpl
def curvlab_register(registry: Registry) -> None:
    """Every part of core, by kind."""
    _layers(registry)
    _curvature(registry)
    _steps(registry)
    _transforms(registry)
    _runs(registry)
    _losses(registry)
    _tasks(registry)


def _layers(registry: Registry) -> None:
    readers, add = "curvlab.model.readers", registry.add
    add("layer", "linear", f"{readers}.linear:LinearReader", summary="nn.Linear, on any leading shape")
    add("layer", "conv", f"{readers}.conv:ConvReader", summary="nn.Conv1d, 2d and 3d, in groups too")
    add(
        "layer",
        "transposed-conv",
        f"{readers}.transposed:ConvTransposeReader",
        summary="nn.ConvTranspose1d, 2d and 3d",
    )
    add("layer", "embedding", f"{readers}.embedding:EmbeddingReader", summary="nn.Embedding, by one-hot rows")
    add(
        "layer",
        "embedding-bag",
        f"{readers}.embedding:EmbeddingBagReader",
        summary="nn.EmbeddingBag",
    )
    add(
        "layer",
        "norm",
        f"{readers}.norm:NormReader",
        summary="scales and shifts of every norm",
    )
    add(
        "layer",
        "bilinear",
        f"{readers}.bilinear:BilinearReader",
        summary="nn.Bilinear",
    )
    add(
        "layer",
        "attention",
        f"{readers}.attention:AttentionReader",
        summary="nn.MultiheadAttention: query, key, value, output",
    )
    add(
        "layer", "recurrent", f"{readers}.recurrent:RecurrentReader", summary="LSTM, GRU, RNN and their cells"
    )
    add(
        "layer",
        "bare-parameters",
        f"{readers}.bare:BareReader",
        summary="weights, scales and shifts in modules of one's own",
    )
    add("layer", "prelu", f"{readers}.prelu:PReLUReader", summary="the slopes of nn.PReLU")


def _curvature(registry: Registry) -> None:
    parts, add = "curvlab.parts", registry.add
    add("structure", "dense", "curvlab.structures.dense:Dense", summary="every entry of the factor")
    add(
        "structure", "diagonal", "curvlab.structures.diagonal:Diagonal", summary="the factor's diagonal alone"
    )
    add(
        "estimator",
        "gauss-newton",
        f"{parts}.gauss_newton:GaussNewton",
        summary="the GGN of the batch, by products",
    )
    add("preconditioner", "identity", f"{parts}.identity:Identity", summary="the gradient as it is")
    add(
        "preconditioner",
        "inverted",
        f"{parts}.inverted:Inverted",
        summary="an estimate of C, inverted now and then",
    )
    add(
        "preconditioner",
        "iterative",
        f"{parts}.iterative:Iterative",
        summary="a Krylov solve of C + λI every step",
    )
    add(
        "preconditioner",
        "eigenbasis",
        f"{parts}.eigenbasis:Eigenbasis",
        summary="second moments in the eigenbasis of an estimate of C",
    )
    add(
        "preconditioner",
        "grafted",
        f"{parts}.grafted:Grafted",
        summary="the direction of one preconditioner, the lengths of another",
    )
    add(
        "preconditioner",
        "routed",
        f"{parts}.routed:Routed",
        summary="a preconditioner per pattern of block names",
    )
    add(
        "inverse",
        "cholesky",
        f"{parts}.inverses:Cholesky",
        summary="through Cholesky factors of the damped estimate",
    )
    add(
        "inverse",
        "eigen",
        f"{parts}.inverses:Eigen",
        summary="through eigenvalues, damping the product exactly",
    )
    add(
        "inverse",
        "diagonal",
        f"{parts}.inverses:DiagonalInverse",
        summary="entry by entry, for estimates that are diagonal",
    )
    add("krylov", "cg", f"{parts}.krylov:ConjugateGradients", summary="conjugate gradients")


def _steps(registry: Registry) -> None:
    add = registry.add
    add("damping", "constant", "curvlab.parts.damping:Constant", summary="one λ, or a schedule of it")
    add(
        "damping",
        "levenberg-marquardt",
        "curvlab.parts.damping:LevenbergMarquardt",
        summary="λ follows the ratio of actual to predicted reduction",
    )
    add("step", "rate", "curvlab.parts.steps:Rate", summary="a learning rate")
    add(
        "step",
        "armijo",
        "curvlab.parts.steps:Armijo",
        summary="the first rate that decreases the loss enough",
    )
    add("step", "grid", "curvlab.parts.steps:Grid", summary="the best of many rates, each half of the last")
    add(
        "step",
        "quadratic-model",
        "curvlab.parts.steps:QuadraticModel",
        summary="the minimizer of the local model",
    )
    add("schedule", "cosine", "curvlab.parts.schedules:Cosine", summary="down along half a cosine")
    add("schedule", "linear", "curvlab.parts.schedules:Linear", summary="along a straight line")
    add("schedule", "power", "curvlab.parts.schedules:Power", summary="down along a power of what is left")
    add("schedule", "warmup", "curvlab.parts.schedules:WarmUp", summary="a factor that rises to 1")
    add(
        "schedule",
        "warmup-stable-decay",
        "curvlab.parts.schedules:WarmUpStableDecay",
        summary="up, along, and down in the last steps",
    )
    add(
        "schedule",
        "product",
        "curvlab.parts.composed_schedules:Product",
        summary="schedules and numbers, multiplied",
    )
    add(
        "schedule",
        "sequence",
        "curvlab.parts.composed_schedules:Sequence",
        summary="schedules and numbers, one after the other",
    )


def _transforms(registry: Registry) -> None:
    module, add = "curvlab.parts.transforms", registry.add
    add("transform", "ema", f"{module}:Ema", summary="exponential moving average")
    add("transform", "momentum", f"{module}:Momentum", summary="heavy-ball momentum")
    add("transform", "weight-decay", f"{module}:WeightDecay", summary="adds a multiple of the parameters")
    add("transform", "clip", f"{module}:Clip", summary="bounds the Euclidean norm")
    add(
        "transform",
        "clip-entries",
        f"{module}:ClipEntries",
        summary="every entry in units of a scale, clipped to ±1",
    )
    add(
        "transform",
        "norm-constraint",
        f"{module}:NormConstraint",
        summary="bounds the update's curvature norm",
    )
    add(
        "transform",
        "graft",
        "curvlab.parts.graft:Graft",
        summary="keeps each block's direction, takes its length from another rule",
    )
    add(
        "transform",
        "nesterov",
        "curvlab.parts.nesterov:Nesterov",
        summary="moving average with the newest vector counted twice",
    )
    add(
        "transform",
        "cautious",
        "curvlab.parts.cautious:Cautious",
        summary="weight decay, and on request updates, only where signs agree",
    )
    add(
        "transform",
        "radial-brake",
        "curvlab.parts.radial:RadialBrake",
        summary="shrinks the update's component along each weight matrix",
    )
    add(
        "transform",
        "row-floor",
        "curvlab.parts.row_floor:RowFloor",
        summary="lengthens rows of the update that are short beside their weights",
    )
    add(
        "transform",
        "hyperball",
        "curvlab.parts.hyperball:Hyperball",
        summary="keeps each weight matrix on the sphere of its first norm",
    )


def _runs(registry: Registry) -> None:
    samplers, add = "curvlab.parts.samplers", registry.add
    add(
        "sampler",
        "uniform",
        f"{samplers}:Uniform",
        summary="mini-batches without replacement, reshuffled each epoch",
    )
    add(
        "sampler",
        "sequential",
        f"{samplers}:Sequential",
        summary="the same batches in every epoch, in the order of the examples",
    )
    add("sampler", "full-batch", f"{samplers}:FullBatch", summary="every example, every step")
    add(
        "sampler",
        "subsampled-curvature",
        f"{samplers}:SubsampledCurvature",
        summary="curvature from a part of the gradient's examples",
    )
    for dtype in ("float32", "float64"):
        add(
            "precision",
            dtype,
            "curvlab.precision.full:Full",
            summary=f"everything in {dtype}",
            dtype_name=dtype,
        )
    add(
        "average",
        "ema",
        "curvlab.parts.weight_means:WeightEma",
        summary="exponential moving average of the weights",
    )
    add(
        "average",
        "tail-ema",
        "curvlab.parts.weight_means:TailEma",
        summary="the same of the end of a run, mixed with the trained weights",
    )
    add(
        "average",
        "schedule-free",
        "curvlab.parts.schedule_free:ScheduleFree",
        summary="gradients between the method's iterates and their average",
    )
    add(
        "callback",
        "early-stop",
        "curvlab.parts.early_stop:EarlyStop",
        summary="ends a run whose training loss no longer falls",
    )
    add(
        "reporter",
        "console",
        "curvlab.reporting.console:Console",
        summary="live progress on a terminal, lines elsewhere",
    )
    add("reporter", "quiet", "curvlab.reporting.quiet:Quiet", summary="nothing")


def _losses(registry: Registry) -> None:
    module, add = "curvlab.objectives.losses", registry.add
    add(
        "loss",
        "cross-entropy",
        f"{module}.cross_entropy:CrossEntropy",
        summary="softmax cross-entropy on logits",
    )
    add(
        "loss",
        "nll",
        f"{module}.cross_entropy:NegativeLogLikelihood",
        summary="minus the label's log-probability, on log-probabilities",
    )
    add(
        "loss",
        "language-model",
        f"{module}.language_model:LanguageModel",
        summary="cross-entropy of each token on those before it",
    )
    add(
        "loss",
        "binary-cross-entropy",
        f"{module}.binary:BinaryCrossEntropy",
        summary="binary cross-entropy on logits, by coordinate",
    )
    add("loss", "mean-squared-error", f"{module}.regression:MeanSquaredError", summary="squared differences")
    add("loss", "huber", f"{module}.regression:Huber", summary="squares that turn into lines")
    add("loss", "smooth-l1", f"{module}.regression:SmoothL1", summary="Huber's loss over where it turns")
    add(
        "loss",
        "poisson-nll",
        f"{module}.poisson:PoissonNegativeLogLikelihood",
        summary="negative log-likelihood of counts",
    )
    add(
        "loss",
        "gaussian-nll",
        f"{module}.gaussian:GaussianNegativeLogLikelihood",
        summary="negative log-likelihood of a mean and a variance",
    )
    add("loss", "heads", f"{module}.heads:Heads", summary="a loss for each output, weighted and summed")


def _tasks(registry: Registry) -> None:
    add, fashion = registry.add, "Debian's package dataset-fashion-mnist, or a folder with its IDX files"
    add(
        "task",
        "quadratic",
        "curvlab.tasks.quadratic:Quadratic",
        summary="a quadratic of chosen spectrum and known optimum",
        source="computed",
    )
    add(
        "task",
        "pde",
        "curvlab.pde.task:OwnProblem",
        summary="a differential equation of your own, as a Python function, solved by a network",
        source="points drawn from a seed",
    )
    add(
        "task",
        "teacher-student",
        "curvlab.tasks.teacher_student:TeacherStudent",
        summary="regression on the outputs of a network of the same shape",
        source="computed",
    )
    add(
        "task",
        "curves",
        "curvlab.tasks.curves:Curves",
        summary="28 × 28 images of curves through a bottleneck of 6",
        source="computed",
    )
    add(
        "task",
        "digits",
        "curvlab.tasks.digits:Digits",
        summary="8 × 8 handwritten digits, an MLP",
        source="inside scikit-learn",
    )
    add(
        "task",
        "fashion-mnist",
        "curvlab.tasks.fashion_mnist:FashionMnist",
        summary="28 × 28 clothes, an MLP",
        source=fashion,
    )
    add(
        "task",
        "fashion-autoencoder",
        "curvlab.tasks.fashion_autoencoder:FashionAutoencoder",
        summary="28 × 28 clothes through a bottleneck of 30",
        source=fashion,
    )
    add(
        "task",
        "fashion-convnet",
        "curvlab.tasks.fashion_convnet:FashionConvnet",
        summary="28 × 28 clothes, three convolutions and two linear layers",
        source=fashion,
    )
    add(
        "task",
        "fashion-vit",
        "curvlab.tasks.fashion_vit:FashionVit",
        summary="28 × 28 clothes, a vision transformer",
        source=fashion,
    )
    add(
        "task",
        "character-gpt",
        "curvlab.tasks.character_gpt:CharacterGpt",
        summary="the next character of English text, a transformer decoder",
        source="Debian's package bible-kjv, or a text file",
    )
