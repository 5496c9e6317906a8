"""The options of the training itself: length, batches, learning rate, precision, noise and loss."""

from typing import Literal

from modules.preset.section import Section, option


class Training(Section):
    """Training length, batch size, learning rate and precision."""

    steps: int = option(
        2000, why="enough for a style with 20 to 100 pictures", unit="steps", ge=1, needs="not training.epochs"
    )
    """Number of optimizer steps. A run that is started again with more steps continues from its last state."""

    epochs: int | None = option(None, why="steps are easier to compare between data sets", ge=1)
    """Number of epochs (passes over all pictures). If given, it replaces training.steps, also when a run is made
    longer."""

    batch_size: int = option(1, why="fits small GPUs; raise it first when memory is left", unit="pictures", ge=1)
    """Pictures per forward pass and process."""

    accumulation: int = option(1, group="Batches", unit="batches", ge=1)
    """Gradient accumulation: number of batches whose gradients are averaged for one optimizer step."""

    learning_rate: float = option(1e-4, why="a common value for low-rank adapters", gt=0, le=10)
    """Learning rate of the optimizer, after the warm-up."""

    schedule: Literal[
        "constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt", "warmup_stable_decay",
        "rex",
    ] = option("cosine", why="a low learning rate at the end lets the adapter settle")
    """Learning-rate schedule after the warm-up. The names are those of diffusers and transformers; rex: slow at first,
    fast at the end (Chen et al. 2021)."""

    warmup: int = option(
        50, why="gives the optimizer's moments time to form", unit="steps", ge=0, needs="not training.warmup_share"
    )
    """Warm-up: number of steps over which the learning rate rises linearly from zero."""

    warmup_share: float | None = option(
        None, why="a number of steps suits trainings of any length", group="Schedule", advanced=True, ge=0, le=0.9
    )
    """Warm-up as a share of all steps. If given, it replaces training.warmup."""

    final_lr: float = option(
        0.05, why="zero would waste the last steps", group="Schedule", advanced=True, title="Final LR", ge=0, le=1,
        needs="training.schedule linear|cosine|cosine_with_restarts|polynomial|warmup_stable_decay|rex",
    )
    """Learning rate that the schedule falls to, as a fraction of training.learning_rate: in the last step, and before
    each restart."""

    cycles: float | None = option(
        None, group="Schedule", advanced=True, gt=0, le=1000, needs="training.schedule cosine|cosine_with_restarts"
    )
    """cosine: number of waves, after each of which the learning rate is full again; null: 0.5, one fall.
    cosine_with_restarts: number of falls, each from the full learning rate; null: 2."""

    power: float = option(
        2.0, why="1 is the schedule linear", group="Schedule", advanced=True, gt=0, le=10,
        needs="training.schedule polynomial",
    )
    """Power of the part of the steps that is left, with schedule polynomial."""

    timescale: int | None = option(
        None, unit="steps", group="Schedule", advanced=True, ge=1, needs="training.schedule inverse_sqrt"
    )
    """Steps after which the schedule inverse_sqrt has fallen to 0.71; after three times as many it is at 0.5. null: as
    many as the warm-up has, or 10000 without one."""

    decay_share: float = option(
        0.2, why="a common value", group="Schedule", advanced=True, gt=0, le=1,
        needs="training.schedule warmup_stable_decay",
    )
    """Share of all steps in which the schedule warmup_stable_decay falls, at the end."""

    rex_curve: float = option(
        0.5, why="the published value", group="Schedule", advanced=True, title="REX curve", ge=0, lt=1,
        needs="training.schedule rex",
    )
    """Shape of the schedule rex: 0 is linear, and the nearer to 1, the later it falls. OneTrainer's is 0.9."""

    max_grad_norm: float = option(1.0, why="limits rare large gradients", group="Stability", ge=0)
    """Gradient clipping: a larger gradient norm is scaled down to this value. 0 turns clipping off."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", why="bfloat16 where the GPU supports it, otherwise float16; float32 on a CPU", group="Memory"
    )
    """Number format of the forward and backward pass (mixed precision). Adapter weights are always kept and updated in
    float32."""

    gradient_checkpointing: bool = option(True, why="halves the memory and takes a third more time", group="Memory")
    """Recompute activations in the backward pass instead of keeping them in memory."""

    compile: bool = option(
        False, why="the first steps take minutes; worth it for long runs", group="Speed", advanced=True
    )
    """Compile the denoiser's repeated blocks with torch.compile. Results differ in the last bits."""

    ema: Literal["none", "device", "main_memory"] = option(
        "none", why="with a falling learning rate the last weights are nearly an average already", group="EMA",
        title="EMA",
    )
    """Keep an exponential moving average (EMA) of the adapter's weights, which is validated, drawn and exported instead
    of the trained ones (validation.ema, samples.ema, export.ema). The training is the same with it. device: the
    average, as large as the adapter, is on the device. main_memory: in main memory, to which the adapter is copied with
    each averaged step."""

    ema_decay: float = option(
        0.999, why="the last thousand averaged steps count most", group="EMA", title="EMA decay", gt=0, lt=1,
        needs="training.ema",
    )
    """Weight that the average keeps in each averaged step. It is lower in the first steps: (1 + s) / (10 + s) after s
    steps."""

    ema_start: int = option(
        0, group="EMA", unit="steps", advanced=True, title="EMA start", ge=0, needs="training.ema"
    )
    """Steps before the average begins. Until then the trained weights are shown."""

    ema_every: int = option(
        1, why="each step is averaged", group="EMA", unit="steps", advanced=True, title="EMA every", ge=1,
        needs="training.ema",
    )
    """Steps from one averaged step to the next. With more, a step costs less, and the average reaches back further."""

    seed: int = option(0, why="any number; the same seed repeats the same run", ge=0, lt=2**32)
    """Seed of the picture order, noise, timesteps and initial weights."""


class Objective(Section):
    """Prediction type, timestep distribution and loss."""

    prediction: Literal["auto", "epsilon", "v_prediction", "flow"] = option("auto", why="as the base model was trained")
    """Prediction type of the denoiser."""

    density: Literal["auto", "uniform", "logit_normal", "mode", "cosmap", "sigmoid", "beta"] = option(
        "auto",
        why="as the family was trained: uniform for diffusion, logit_normal for rectified flow",
        title="Timestep distribution",
    )
    """Timestep distribution: how often each noise level is drawn (logit_normal, mode, cosmap: Esser et al. 2024,
    section 3.1)."""

    density_mean: float = option(
        0.0, why="favours medium noise", group="Timesteps", advanced=True, ge=-10, le=10, title="Logit-normal mean",
        needs="!objective.density logit_normal",
    )
    """Mean of the logit_normal distribution. Below 0 favours little noise (detail), above 0 much noise
    (composition)."""

    density_spread: float = option(
        1.0, why="the published value", group="Timesteps", advanced=True, gt=0, le=10, title="Logit-normal spread",
        needs="!objective.density logit_normal",
    )
    """Standard deviation of the logit_normal distribution."""

    mode_scale: float = option(
        1.29, why="the published value", group="Timesteps", advanced=True, ge=-1, le=1.75,
        needs="!objective.density mode",
    )
    """Shape of the mode distribution. Above 0 favours medium noise, below 0 very little and very much noise."""

    sigmoid_slope: float = option(
        5.0, why="noise is favoured about tenfold", group="Timesteps", advanced=True, ge=-100, le=100,
        needs="!objective.density sigmoid",
    )
    """Slope of the sigmoid distribution. Above 0 favours much noise, below 0 little."""

    sigmoid_center: float = option(
        0.5, group="Timesteps", advanced=True, ge=-2, le=3, needs="!objective.density sigmoid"
    )
    """Noise level at which the sigmoid distribution has half of its largest value."""

    beta_a: float = option(
        2.0, why="favours medium noise", group="Timesteps", advanced=True, ge=0.01, le=100, title="Beta: a",
        needs="!objective.density beta",
    )
    """First parameter of the beta distribution (alpha). A larger one favours much noise."""

    beta_b: float = option(
        2.0, why="favours medium noise", group="Timesteps", advanced=True, ge=0.01, le=100, title="Beta: b",
        needs="!objective.density beta",
    )
    """Second parameter of the beta distribution (beta). A larger one favours little noise."""

    min_noise: float = option(
        0.0, group="Timesteps", advanced=True, title="Smallest noise level", ge=0, lt=1
    )
    """Smallest noise level that is trained and validated: timestep divided by 1000, after the shift. The distribution
    is squeezed between it and objective.max_noise."""

    max_noise: float = option(1.0, group="Timesteps", advanced=True, title="Largest noise level", gt=0, le=1)
    """Largest noise level that is trained and validated, as objective.min_noise. 1: pure noise."""

    shift: float | None = option(
        None, why="as the base model samples; some models shift more for large pictures", group="Timesteps",
        gt=0, le=100, needs="!@flow",
    )
    """Flow shift, for rectified flow: a fixed shift of the timesteps towards noise. null: the base model's own."""

    zero_terminal_snr: bool = option(
        False, why="most base models are not trained this way", group="Timesteps", advanced=True,
        needs="!@diffusion",
    )
    """Rescale the noise schedule to zero terminal SNR in training and sampling (Lin et al. 2024), so that very dark and
    very bright pictures can be learned. For diffusion families; needs a base with v-prediction."""

    loss: Literal["mse", "l1", "log_cosh", "huber", "smooth_l1", "pseudo_huber", "pseudo_smooth_l1", "mix"] = option(
        "mse", why="what the base models were trained with", group="Loss"
    )
    """Loss function. mse: squared error. l1: absolute error. The others are squared for small errors and linear for
    large ones, so that pictures that do not fit the others count less: log_cosh; huber and smooth_l1, as in PyTorch;
    pseudo_huber and pseudo_smooth_l1, their smooth forms, which sd-scripts calls huber and smooth_l1. mix: the sum of
    mse, l1, log_cosh and huber, each times its weight."""

    loss_delta: float = option(
        0.1, why="a tenth of the noise's standard deviation", group="Loss", advanced=True, gt=0, le=10,
        needs="!objective.loss huber|smooth_l1|pseudo_huber|pseudo_smooth_l1 or objective.mix_huber",
    )
    """Error above which these losses are linear."""

    delta_schedule: Literal["constant", "exponential", "snr"] = option(
        "constant", group="Loss", advanced=True, title="Schedule of delta",
        needs="!objective.loss huber|smooth_l1|pseudo_huber|pseudo_smooth_l1 or objective.mix_huber",
    )
    """How objective.loss_delta follows the noise level (scheduled Huber loss, as in sd-scripts). constant: not at all.
    exponential, snr: it is 1 without noise and falls to the option's value at pure noise."""

    mix_mse: float = option(
        0.0, group="Loss", advanced=True, title="Mix: MSE", ge=0, le=100, needs="!objective.loss mix"
    )
    """Weight of the squared error in loss mix."""

    mix_l1: float = option(
        0.0, group="Loss", advanced=True, title="Mix: L1", ge=0, le=100, needs="!objective.loss mix"
    )
    """Weight of the absolute error in loss mix."""

    mix_log_cosh: float = option(
        0.0, group="Loss", advanced=True, title="Mix: log cosh", ge=0, le=100, needs="!objective.loss mix"
    )
    """Weight of log_cosh in loss mix."""

    mix_huber: float = option(
        0.0, group="Loss", advanced=True, title="Mix: Huber", ge=0, le=100, needs="!objective.loss mix"
    )
    """Weight of huber in loss mix."""

    min_snr_gamma: float | None = option(
        5.0, why="the published value; balances the timesteps", group="Loss", title="Min SNR gamma", gt=0,
        needs="!@diffusion",
    )
    """Gamma of the min-SNR loss weighting (Hang et al. 2023), for diffusion families. null turns it off."""

    debiased: bool = option(
        False, why="min-SNR is more common", group="Loss", advanced=True, needs="!@diffusion"
    )
    """Use debiased loss weighting (Yu et al. 2023) instead of min-SNR."""

    noise_offset: float = option(0.0, group="Noise", ge=0, le=1)
    """Noise offset: strength of additional noise that is constant over a picture, so that very dark and very bright
    pictures can be learned."""

    adaptive_offset: float = option(
        0.0, group="Noise", advanced=True, title="Adaptive noise offset", ge=-1, le=1
    )
    """Added to the noise offset for each unit of a latent channel's mean in the picture (without its sign), so that
    very dark and very bright pictures get more of it, or less below 0."""

    pyramid_noise: int = option(0, group="Noise", advanced=True, ge=0, le=20)
    """Pyramid noise: number of sizes of coarser and coarser noise that are added. 0: none. Common: 6 to 10."""

    pyramid_discount: float = option(
        0.3, why="sd-scripts' default", group="Noise", advanced=True, gt=0, le=1, needs="objective.pyramid_noise"
    )
    """Strength of each size of pyramid noise, as a fraction of the one before."""

    perturbation: float = option(0.0, group="Noise", advanced=True, title="Input perturbation", ge=0, le=1)
    """Strength of additional noise that the network's input has and its target has not, against overfitting (Ning et
    al. 2023; ip_noise_gamma in sd-scripts). Published: 0.1."""
