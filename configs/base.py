"""Every configuration key with its default and unit. The other files start from this one and hold differences only.

The names of tasks, synthetic sets, suites and sizes are checked, so a mistyped one fails before anything is compiled.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the locked configuration that has every key; it trains nothing until `data.sources` is given."""
    config = ConfigDict()
    config.seed = 0  # integer; initial weights, order of the data, augmentation and synthesis all follow from it
    config.steps = 1000  # optimizer steps
    config.method = "adapter"  # adapter | full (fine-tune the whole backbone) | pretrain (from random weights)
    # folder, builtin:NAME, or shapes alone: abstract, abstract:MODEL; unused by pretrain
    config.backbone = "builtin:tiny"
    config.backbone_dtype = "auto"  # auto (bfloat16 on TPU and GPU, float32 on CPU) | float32 | bfloat16
    config.dropout = 0.0  # on the residual branches of the encoder, 0 to 1; training only, also where it is frozen
    # what the backward pass computes anew: none | full (every layer) | dots (all but the projections)
    config.remat = "none"
    # Queries that attention takes at a time, their scores computed anew backward; 0: all; -1: on TPUs as many heads and
    # queries as keep their scores on the chip, elsewhere all.
    config.attention_block = -1
    config.accumulate = 1  # micro-batches per optimizer step

    config.pretrain = ConfigDict()
    config.pretrain.size = "tiny"  # a name of hra_jax.models.encoder_config.SIZES
    config.pretrain.vocabulary = "characters"  # characters | sentencepiece; made from the training texts
    config.pretrain.sentencepiece_size = 512  # pieces

    config.adapter = ConfigDict()
    config.adapter.name = "hra"  # hra | residual | lora | bitfit | output; its own settings are in the group so named
    config.adapter.layers = ()  # numbers of the adapted layers, from 0; () means all
    # output layer: backbone | task (owns a correction) | characters, sentencepiece (owns it, and a new vocabulary of
    # its training texts) | shared_characters, shared_sentencepiece (one for all tasks)
    config.adapter.output = "backbone"
    config.adapter.output_size = 0  # outputs with a new vocabulary; 0: as many as the largest vocabulary needs
    # size of a new SentencePiece vocabulary at most, the blank included; with `start` as large as those there
    config.adapter.output_pieces = 128
    config.adapter.train = "all"  # all | tasks (rows of the tasks alone; what they share stays as it starts)
    config.adapter.start = ""  # folder of an exported adapter to start from; '' for a new one
    # start of a task that `start` lacks: zero (no effect) | mean | name of a task there
    config.adapter.new_task = "zero"
    config.adapter.slots = 0  # rows of the task bank; more than tasks leaves room to add some without compiling anew
    config.adapter.bank = "device"  # where the task bank lives: device | host (rows of the step's tasks on the device)

    config.hra = ConfigDict()  # hierarchical recurrent adapter
    config.hra.width = 64  # controller width R
    config.hra.recurrence = "indrnn"  # indrnn | rnn | gru | lstm | mgu | none (feed-forward)
    config.hra.activation = "relu"  # of the controller: relu | tanh | gelu | silu | sigmoid
    config.hra.reads = "layer"  # layer (its output) | input (of the layer) | an affine map, such as attention.output
    config.hra.head = "linear"  # linear | ffn | lowrank
    config.hra.head_width = 32  # hidden units of an ffn head, rank of a lowrank one; unused by a linear head
    config.hra.head_per_layer = False  # a head for each layer in place of one for all
    config.hra.dropout = 0.0  # of the controller's state before the head, 0 to 1; training only

    config.residual = ConfigDict()  # bottleneck adapters
    config.residual.width = 16  # of the bottleneck
    config.residual.dropout = 0.0  # of the bottleneck, 0 to 1; training only

    config.lora = ConfigDict()  # low-rank adaptation
    config.lora.projections = ("attention.query", "attention.value")  # ff1.up, convolution.gated, ...
    config.lora.rank = 4  # of each correction
    config.lora.alpha = 8.0  # corrections are scaled by alpha / rank
    config.lora.dropout = 0.0  # of the projections' input on the low-rank path, 0 to 1; training only

    config.data = ConfigDict()
    config.data.dir = ""  # folder that {dir} in manifest paths stands for
    config.data.sources = ()  # ((name, manifest path, rate), ...); rate: relative weight, or 'proportional' to its rows
    config.data.task_tag = "speaker"  # manifest tag whose value is the task's name
    config.data.tasks = ()  # task names; () means every value of the tag in the training sources, sorted
    config.data.synthetic = ""  # synthetic set that is rendered once into data.dir where it is absent; '' for none
    config.data.normalizer = "basic"  # of transcripts: none | lower | basic (lower case, no punctuation)
    config.data.strict = False  # True: the first unusable utterance is an error; False: it is skipped and reported
    config.data.max_seconds = 0.0  # seconds; longer utterances are skipped; 0 means the last of batch.buckets
    config.data.threads = 4  # threads that decode audio, per host
    config.data.prefetch = 4  # batches decoded ahead

    config.batch = ConfigDict()
    config.batch.seconds = 64.0  # seconds of audio in a global batch, padding included
    config.batch.multiple = 1  # utterances; every batch has a multiple of it; the data part of the mesh must divide it
    config.batch.max_tasks = 32  # distinct tasks in a global batch at most
    config.batch.buckets = (2.0, 4.0, 8.0, 16.0)  # seconds, ascending; the last is the longest utterance taken

    config.augment = ConfigDict()  # on the device, in training only
    config.augment.noise_probability = 0.0  # share of the utterances that get noise, 0 to 1
    config.augment.noise_snr_db = (5.0, 40.0)  # signal-to-noise ratio, (lowest, highest) dB
    config.augment.speed = 0.0  # speeds are drawn from 1 - speed to 1 + speed; 0 where the backbone takes samples
    config.augment.warp = 0.0  # frequency factors from 1 - warp to 1 + warp (vocal-tract length); 0 for samples too
    config.augment.time_masks = 2  # masks per utterance
    config.augment.time_mask_fraction = 0.1  # longest time mask, as a share of the utterance
    config.augment.freq_masks = (
        2  # masks per utterance; must be 0 where the backbone takes samples (wav2vec2-conformer)
    )
    config.augment.freq_mask_bins = 8  # widest frequency mask, mel bins

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 2e-3  # peak, per step
    config.optimizer.warmup_steps = 100  # steps of linear warm-up from 0
    config.optimizer.schedule = "cosine"  # after the warm-up: cosine | constant
    config.optimizer.final_fraction = 0.05  # learning rate at the last step, as a share of the peak; cosine only
    config.optimizer.b1 = 0.9  # AdamW, decay of the first moment
    config.optimizer.b2 = 0.98  # AdamW, decay of the second moment
    config.optimizer.eps = 1e-8  # AdamW, added to the root of the second moment
    config.optimizer.weight_decay = 1e-4  # AdamW, per step, times the learning rate
    config.optimizer.clip_controller = 1.0  # largest gradient norm of the shared controller
    config.optimizer.clip_row = 1.0  # largest gradient norm of one task's row
    config.optimizer.clip_norm = 1.0  # largest gradient norm of all weights; methods full and pretrain

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 200  # steps; the first checkpoint is always at step 1
    config.checkpoint.keep_latest = 1  # checkpoints
    config.checkpoint.keep_best = 1  # checkpoints with the lowest macro word error rate on eval.select_suite

    config.eval = ConfigDict()
    config.eval.every_steps = 200  # steps between two evaluations of select_suite
    config.eval.suite = ""  # name or path of the test suite that runs once at the end; '' for none
    config.eval.select_suite = ""  # name or path of the validation suite that picks the best checkpoint; '' for none
    config.eval.batch_seconds = 128.0  # seconds of audio in an evaluation batch, padding included
    config.eval.bootstrap = 1000  # resamples of the 95% interval; 0 for no interval

    config.export = ConfigDict({"from": "last"})  # from: last | best | best_per_task (if nothing shared trains)
    config.export.per_task_files = False  # True: a weight file for each task in W/adapter
    config.export.dtype = "float32"  # of an exported backbone (methods full and pretrain): float32 | bfloat16
    config.export.license = ""  # of an exported backbone, for its backbone.json

    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices along the batch; -1, which one of the sizes may be: all that the others leave
    config.mesh.fsdp = 1  # devices along the batch that also share the backbone's weights
    config.mesh.tensor = 1  # devices that share one layer's width
    config.mesh.slices = 1  # TPU slices

    config.distributed = ConfigDict()
    config.distributed.heartbeat_seconds = 20  # seconds without a sign of life after which a process is taken for dead

    config.profile = ConfigDict()
    config.profile.start_step = -1  # first step of a profile in W/profile; -1 for none
    config.profile.steps = 5  # steps
    config.profile.peak_tflops = 0.0  # 10^12 operations a second of one device, for train/mfu; 0: of known chips

    config.log = ConfigDict()
    config.log.every_steps = 10  # steps between two lines of metrics
    return config.lock()
