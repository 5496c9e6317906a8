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

    density: Literal["auto", "uniform", "logit_normal", "mode", "cosmap"] = option(
        "auto",
        why="as the family was trained: uniform for diffusion, logit_normal for rectified flow",
        title="Timestep distribution",
    )
    """Timestep distribution: how often each noise level is drawn (Esser et al. 2024, section 3.1)."""

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

    loss: Literal["mse", "huber", "smooth_l1"] = option(
        "mse", why="what the base models were trained with", group="Loss"
    )
    """Loss function. mse: squared error. huber, smooth_l1: linear for large errors, so that pictures that do not fit
    the others count less."""

    loss_delta: float = option(
        0.1, why="a tenth of the noise's standard deviation", group="Loss", advanced=True, gt=0, le=10,
        needs="!objective.loss huber|smooth_l1",
    )
    """Error above which huber and smooth_l1 are linear."""

    min_snr_gamma: float | None = option(
        5.0, why="the published value; balances the timesteps", group="Loss", title="Min SNR gamma", gt=0,
        needs="!@diffusion",
    )
    """Gamma of the min-SNR loss weighting (Hang et al. 2023), for diffusion families. null turns it off."""

    debiased: bool = option(
        False, why="min-SNR is more common", group="Loss", advanced=True, needs="!@diffusion"
    )
    """Use debiased loss weighting (Yu et al. 2023) instead of min-SNR."""

    noise_offset: float = option(0.0, group="Loss", ge=0, le=1)
    """Noise offset: strength of additional noise that is constant over a picture, so that very dark and very bright
    pictures can be learned."""
