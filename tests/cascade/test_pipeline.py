import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from PIL import Image
from tiny import CLASSES, base, cascade, foreign, sr3

from cascade import BasePipeline, CascadePipeline, SR3Pipeline
from cascade.classes import Vocabulary
from cascade.stages.conditioning import resize


@pytest.fixture(scope="module")
def tiny():
    return cascade()


def evaluations(*stages):
    """Names of the stages' networks, one for every evaluation that will be."""
    seen = []
    for stage in stages:
        stage.unet.register_forward_pre_hook(lambda module, args: seen.append((module.config.sample_size, len(args[0]))))
    return seen


def test_an_image_has_the_same_bytes_alone_in_a_batch_and_in_another_order(tiny):
    together = tiny(["cat", "dog", "fruit"], seeds=[5, 6, 7], output_type="pt")
    alone = tiny("dog", seeds=[6], output_type="pt")
    shuffled = tiny(["fruit", "cat", "dog"], seeds=[7, 5, 6], output_type="pt")
    assert together.images.shape == (3, 3, 32, 32)
    for name in ("base", "sr16", "sr32"):
        assert torch.equal(alone.stages[name].images[0], together.stages[name].images[1])
        assert torch.equal(shuffled.stages[name].images, together.stages[name].images[[2, 0, 1]])
    assert not torch.equal(together.images[0], tiny("cat", seeds=[6], output_type="pt").images[0])


def test_images_come_class_by_class_and_one_seed_counts_up(tiny):
    out = tiny(["dog", 0], num_images_per_class=2, seeds=8, output_type="pt")
    assert (out.labels, out.seeds) == ([1, 1, 0, 0], [8, 9, 10, 11])
    assert torch.equal(out.images[2], tiny("cat", seeds=10, output_type="pt").images[0])


def test_each_stage_draws_its_noise_from_seed_and_name(tiny):
    out = tiny("dog", seeds=9, size=16, output_type="pt")

    def generator(stage):
        return [torch.Generator().manual_seed(int(hashlib.sha256(f"9/{stage}".encode()).hexdigest()[:16], 16) >> 1)]

    first = tiny.stages["base"](1, generator=generator("base"), output_type="pt").images
    assert torch.equal(out.stages["base"].images, first)
    assert torch.equal(out.images, tiny.stages["sr16"](first, 1, generator=generator("sr16"), output_type="pt").images)


def test_seeds_are_drawn_from_generators_and_reported(tiny):
    drawn = tiny(["cat", "dog"], generator=torch.Generator().manual_seed(3), size=8, output_type="pt")
    again = tiny(["cat", "dog"], seeds=drawn.seeds, size=8, output_type="pt")
    assert torch.equal(drawn.images, again.images) and drawn.seeds[0] != drawn.seeds[1]
    each = [torch.Generator().manual_seed(value) for value in (1, 2)]
    assert tiny(["cat", "dog"], generator=each, size=8).seeds == [
        tiny(["cat"], generator=[torch.Generator().manual_seed(value)], size=8).seeds[0] for value in (1, 2)
    ]
    assert tiny("cat", size=8).seeds != tiny("cat", size=8).seeds


def test_the_hand_over_keeps_more_than_eight_bits():
    seen = []

    class Watching(SR3Pipeline):
        def __call__(self, image, *args, **kwargs):
            seen.append(image)
            return super().__call__(image, *args, **kwargs)

    later = sr3()
    made = cascade(base=base(), sr16=Watching(later.unet, later.scheduler, num_inference_steps=2))
    out = made("cat", seeds=0, output_type="pt")
    assert torch.equal(seen[0], out.stages["base"].images)
    levels = (seen[0] + 1) * 127.5
    assert (levels - levels.round()).abs().max() > 0.1


def test_larger_images_than_a_stage_refines_are_reduced():
    made = cascade(base=base(sample_size=16), sr32=sr3(32, 8))
    out = made("cat", seeds=3, output_type="pt")
    small = resize(out.stages["base"].images, 8)
    assert torch.equal(made.upscale(small, "cat", seeds=3, output_type="pt").images, out.images)


def test_upscale_of_what_a_stage_made_is_what_the_cascade_makes(tiny):
    out = tiny(["cat", "dog"], seeds=[1, 2], output_type="pt")
    for name in ("base", "sr16"):
        again = tiny.upscale(out.stages[name].images, ["cat", "dog"], seeds=[1, 2], output_type="pt")
        assert torch.equal(again.images, out.images)
        assert list(again.stages) == (["sr16", "sr32"] if name == "base" else ["sr32"])


@pytest.mark.parametrize(("side", "entry"), [(4, "sr16"), (8, "sr16"), (12, "sr16"), (16, "sr32"), (20, "sr32")])
def test_images_enter_at_the_last_stage_that_needs_no_larger_ones(tiny, side, entry):
    photo = Image.new("RGB", (side, side), "red")
    assert next(iter(tiny.upscale(photo, "cat", seeds=0).stages)) == entry


def test_upscale_takes_an_entry_and_a_size(tiny):
    photo = np.full((16, 16, 3), 0.5, np.float32)
    out = tiny.upscale([photo, photo], 1, stage="sr16", size=16, seeds=[0, 0])
    assert list(out.stages) == ["sr16"] and out.labels == [1, 1]
    with pytest.raises(ValueError, match="'base' makes images from noise"):
        tiny.upscale(photo, 1, stage="base")
    with pytest.raises(ValueError, match="image is 32 px, but the stages of this cascade make at most 32 px"):
        tiny.upscale(Image.new("RGB", (32, 32)), 1)
    with pytest.raises(ValueError, match="got 2 class_labels for 3 images"):
        tiny.upscale([photo] * 3, [0, 1])
    with pytest.raises(ValueError, match="16x8"):
        tiny.upscale(Image.new("RGB", (16, 8)), 1)


def test_size_stops_at_a_stage_and_leaves_its_images_as_they_are():
    made = cascade()
    seen = evaluations(*made.stages.values())
    small = made("cat", seeds=4, size=8, output_type="pt")
    assert list(small.stages) == ["base"] and seen == [(8, 1)] * 3
    whole = made("cat", seeds=4, output_type="pt")
    assert torch.equal(whole.stages["base"].images, small.images)


def test_a_default_size_is_that_of_calls_and_not_of_upscaling():
    whole = cascade()
    made = CascadePipeline(whole.stages, whole.classes, default_size=16)
    small = made("cat", seeds=4, output_type="pt")
    assert list(small.stages) == ["base", "sr16"]
    assert torch.equal(small.images, whole("cat", seeds=4, size=16, output_type="pt").images)
    assert made("cat", seeds=4, size=32).images[0].size == (32, 32)
    assert made.upscale(small.images, "cat", seeds=4).images[0].size == (32, 32)
    with pytest.raises(ValueError, match="no stage makes 24x24 images; choose size from 8, 16, 32"):
        CascadePipeline(whole.stages, whole.classes, default_size=24)


def test_settings_are_one_value_or_one_a_stage():
    made = cascade()
    seen = evaluations(*made.stages.values())
    made("cat", num_inference_steps=4, seeds=0)
    made("cat", num_inference_steps={"sr16": 1}, guidance_scale={"sr32": 2.0}, seeds=0, aug_level=0.5)
    assert seen == [(8, 1)] * 4 + [(16, 1)] * 4 + [(32, 1)] * 4 + [(8, 1)] * 3 + [(16, 1)] + [(32, 2)] * 2
    plain, strong = (made("cat", seeds=0, aug_level=level, output_type="pt") for level in (None, {"sr32": 0.9}))
    assert torch.equal(plain.stages["sr16"].images, strong.stages["sr16"].images)
    assert not torch.equal(plain.images, strong.images)


def test_consistent_stages_average_to_each_other():
    made = cascade()
    out = made(["cat", "dog"], seeds=0, consistency=True, aug_level=0.5, tile_size={"sr32": 24}, output_type="pt")
    for large, small in (("sr16", "base"), ("sr32", "sr16")):
        means = torch.nn.functional.avg_pool2d(out.stages[large].images, 2)
        torch.testing.assert_close(means, out.stages[small].images, rtol=0, atol=5e-6)
    upscaled = made.upscale(out.stages["sr16"].images, ["cat", "dog"], "sr32", seeds=0, consistency=True, output_type="pt").images
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(upscaled, 2), out.stages["sr16"].images, rtol=0, atol=5e-6)


def test_tiles_are_of_the_stages_that_are_named():
    made = cascade()
    seen = evaluations(*made.stages.values())
    made("cat", seeds=0, tile_size={"sr32": 24}, batch_size=3)
    assert seen == [(8, 1)] * 3 + [(16, 1)] * 2 + [(32, 3), (32, 1)] * 2  # four tiles, three at once


def test_a_scheduler_is_exchanged_for_one_call(tiny):
    before = {name: stage.scheduler for name, stage in tiny.stages.items()}
    chosen = tiny("cat", seeds=0, size=8, scheduler={"base": DDIMScheduler}, output_type="pt").images
    assert {name: stage.scheduler for name, stage in tiny.stages.items()} == before
    own = cascade(base=base())
    own.stages["base"].scheduler = DDIMScheduler.from_config(own.stages["base"].scheduler.config)
    assert torch.equal(own("cat", seeds=0, output_type="pt").images, chosen)
    assert not torch.equal(tiny("cat", seeds=0, size=8, output_type="pt").images, chosen)


def test_micro_batches_bound_what_runs_at_once():
    made = cascade(base=base(), sr16=sr3())
    seen = evaluations(*made.stages.values())
    one = made([0, 1, 2], seeds=0, output_type="pt").images
    two = made([0, 1, 2], seeds=0, output_type="pt", batch_size=2).images
    assert {size for _, size in seen[:15]} == {1} and [size for _, size in seen[15:]] == [2] * 3 + [1] * 3 + [2] * 2 + [1] * 2
    torch.testing.assert_close(one, two, rtol=0, atol=1e-4)


def test_every_output_type_shows_the_same_pictures(tiny):
    pt, array, pil = (tiny(["cat", "dog"], seeds=0, output_type=kind) for kind in ("pt", "np", "pil"))
    np.testing.assert_allclose(array.images, (pt.images.permute(0, 2, 3, 1).numpy() + 1) / 2, atol=1e-6)
    assert [image.size for image in pil.stages["base"].images] == [(8, 8)] * 2
    np.testing.assert_allclose(np.stack([np.asarray(one) for one in pil.images]) / 255, array.images, atol=0.5 / 255 + 1e-6)
    (images,) = tiny(["cat", "dog"], seeds=0, output_type="pt", return_dict=False)
    assert torch.equal(images, pt.images)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"class_labels": "rat"}, "unknown class 'rat'"),
        ({"class_labels": 3}, "class index 3 is out of range"),
        ({"class_labels": []}, "class_labels is empty"),
        ({}, "class_labels is missing"),
        ({"num_images_per_class": 0}, "num_images_per_class must be at least 1, got 0"),
        ({"seeds": [1, 2]}, "got 2 seeds for 1 images"),
        ({"seeds": 1.5}, "seeds must be a whole number or a list of them, got 1.5"),
        ({"seeds": 1, "generator": torch.Generator()}, "got both seeds and generator"),
        ({"size": 64}, "no stage makes 64x64 images; choose size from 8, 16, 32"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"output_type": "jpg"}, "output_type is 'jpg'"),
        ({"num_inference_steps": {"sr32": 0}}, "stage 'sr32': num_inference_steps must be at least 1, got 0"),
        ({"num_inference_steps": {"sr64": 2}}, "there is no stage 'sr64'; the stages are base, sr16, sr32"),
        ({"aug_level": {"base": 0.1}}, "stage 'base' takes no aug_level"),
        ({"aug_level": 2.0}, r"stage 'sr16': aug_level must lie in \[0, 1\], got 2"),
        ({"consistency": {"base": True}}, "stage 'base' takes no consistency"),
        ({"tile_size": {"sr32": 9}}, "stage 'sr32': tile_size is 9, but this network runs on sizes divisible by 2"),
        ({"guidance_interval": {"sr32": (3.0, 1.0)}}, r"stage 'sr32': guidance interval \(3.0, 1.0\) is empty"),
        ({"scheduler": "ddin"}, "scheduler is 'ddin', expected one of ddpm"),
        ({"scheduler": {"sr64": DDIMScheduler}}, "there is no stage 'sr64'"),
    ],
)
def test_a_wrong_request_is_refused_before_any_network_runs(arguments, problem):
    made = cascade()
    seen = evaluations(*made.stages.values())
    with pytest.raises(ValueError, match=problem):
        made(**({"class_labels": "cat"} | arguments if arguments else {}))
    assert not seen


def test_a_stage_that_cannot_follow_its_scheduler_is_refused_before_any_network_runs():
    later = sr3(prediction_type="epsilon")
    later.scheduler = DDPMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    made = cascade(base=base(), sr16=later)
    seen = evaluations(*made.stages.values())
    with pytest.raises(ValueError, match="stage 'sr16': DDPMScheduler starts from pure noise"):
        made("cat")
    assert not seen


@pytest.mark.parametrize(
    ("stages", "problem"),
    [
        ({}, "at least one stage"),
        ({"sr16": sr3()}, "the first stage, 'sr16', enlarges images"),
        ({"base": base(), "more": base()}, "stage 'more' is a BasePipeline"),
        ({"base": base(), "sr32": sr3(32, 16)}, "stage 'sr32' refines 16 px images, but 'base' before it makes only 8 px"),
        ({"base": base(sample_size=16), "sr16": sr3()}, "stage 'sr16' makes 16 px images, and 'base' before it 16 px already"),
        ({"base": base(num_classes=4), "sr16": sr3()}, "different numbers of classes: 'base' 4, 'sr16' 3"),
        ({"base": base(num_classes=4)}, "got names for 3 classes, but the stages know 4"),
        ({"a/b": base()}, "needs a name of letters"),
    ],
)
def test_stages_that_do_not_fit_are_refused(stages, problem):
    with pytest.raises(ValueError, match=problem):
        CascadePipeline(stages, ["cat", "dog", "fruit"])


def test_a_cascade_without_classes_counts_its_images():
    made = cascade(classes=None, base=base(num_classes=None), sr16=sr3(num_classes=None))
    out = made(num_images_per_class=2, seeds=0)
    assert len(out.images) == 2 and out.labels is None
    with pytest.raises(ValueError, match="this cascade knows no classes"):
        made("cat")


def test_classes_without_names_go_by_index():
    made = cascade(classes=None, base=base())
    assert made([2, torch.tensor(1)], seeds=0).labels == [2, 1]
    assert made(torch.tensor([2, 0]), seeds=0).labels == [2, 0]
    with pytest.raises(ValueError, match="class index 3 is out of range"):
        made(3)


def test_a_stage_without_classes_goes_with_stages_that_have_them():
    made = cascade(base=base(), sr16=sr3(num_classes=None))
    assert made("dog", seeds=0).labels == [1]


def test_a_diffusers_pipeline_is_a_base():
    theirs = foreign()
    made = cascade(base=theirs, sr16=sr3())
    assert made.sizes == {"base": 8, "sr16": 16}
    out = made(["cat", "dog", "fruit"], seeds=[5, 6, 7], num_inference_steps=2, guidance_scale=1.0, output_type="pt")
    alone = made("dog", seeds=6, num_inference_steps=2, output_type="pt")
    assert torch.equal(alone.images[0], out.images[1])
    seed = int(hashlib.sha256(b"6/base").hexdigest()[:16], 16) >> 1
    want = theirs(generator=torch.Generator().manual_seed(seed), num_inference_steps=2, output_type="np").images
    torch.testing.assert_close(out.stages["base"].images[1], torch.from_numpy(2 * want[0] - 1).movedim(-1, 0))
    with pytest.raises(ValueError, match="stage 'base' takes no guidance_scale"):
        made("cat", guidance_scale={"base": 2.0})
    with pytest.raises(ValueError, match="stage 'base': num_inference_steps must be at least 1"):
        made("cat", num_inference_steps=0)


class ByClass(DiffusionPipeline):
    """Paints the class and noise from torch's own generator, as a pipeline does whose scheduler is given none."""

    size = 8

    def __init__(self):
        super().__init__()
        self.register_to_config()

    def __call__(self, class_labels, output_type="pil"):
        noise = torch.randn(len(class_labels), 1, 1, 1).sigmoid() / 2
        images = (noise + torch.tensor(class_labels).view(-1, 1, 1, 1) / 10).expand(-1, 8, 8, 3).numpy()
        return ImagePipelineOutput(images=images if output_type == "np" else self.numpy_to_pil(images))


def test_a_foreign_base_gets_classes_and_its_global_noise_follows_the_seed():
    made = cascade(base=ByClass())
    out = made(["dog", "cat"], seeds=[1, 2], output_type="pt")
    state = torch.get_rng_state()
    assert torch.equal(made("cat", seeds=2, output_type="pt").images[0], out.images[1])
    assert torch.equal(torch.get_rng_state(), state)
    same = made(["dog", "cat"], seeds=[3, 3], output_type="pt").images
    torch.testing.assert_close(same[0] - same[1], torch.full((3, 8, 8), 0.2), rtol=0, atol=1e-6)


def test_a_foreign_base_that_does_not_do_is_refused():
    class ByPrompt(ByClass):
        def __call__(self, prompt, class_labels):
            raise AssertionError

    class Unsized(ByClass):
        size = None

    class Wrong(ByClass):
        size = 16

    class Broken(ByClass):
        def __call__(self, class_labels, output_type="np"):
            return ImagePipelineOutput(images=np.full((1, 8, 8, 3), np.nan))

    with pytest.raises(ValueError, match="ByPrompt can't be the base of a cascade: its call needs prompt"):
        cascade(base=ByPrompt())
    with pytest.raises(ValueError, match="can't tell the size of the images that Unsized makes"):
        cascade(base=Unsized())
    with pytest.raises(RuntimeError, match=r"Wrong made images of shape \(1, 8, 8, 3\), expected \(1, 16, 16, 3\)"):
        cascade(base=Wrong())("cat")
    with pytest.raises(RuntimeError, match="Broken made values that are not numbers"):
        cascade(base=Broken())("cat")


def test_a_network_that_makes_nan_fails_in_one_sentence():
    made = cascade(base=base())
    with torch.no_grad():
        made.stages["base"].unet.conv_in.weight[0] = torch.nan
    with pytest.raises(RuntimeError, match="made values that are not numbers"):
        made("cat")


def test_to_moves_and_casts_every_stage():
    made = cascade(base=base(), sr16=sr3())
    assert made.to("cpu", torch.bfloat16) is made
    assert {stage.unet.dtype for stage in made.stages.values()} == {torch.bfloat16}
    assert made("cat", seeds=0, output_type="pt").images.dtype == torch.float32
    made.to(torch.float32).to("meta")
    assert {(stage.unet.dtype, stage.unet.device.type) for stage in made.stages.values()} == {(torch.float32, "meta")}


def test_idle_stages_are_offloaded(monkeypatch):
    made = cascade(base=base(), sr16=sr3())
    moves = []
    for name, stage in made.stages.items():
        monkeypatch.setattr(stage, "to", lambda *where, name=name, **_: moves.append((name, str(where[0]))))
    made.enable_model_cpu_offload("cuda:1")
    moves.clear()
    made("cat")
    assert moves == [("base", "cuda:1"), ("base", "cpu"), ("sr16", "cuda:1"), ("sr16", "cpu")]
    made.to("cpu")
    moves.clear()
    made("cat")
    assert moves == []


def test_bars_bear_the_names_of_their_stages(capsys):
    made = cascade(base=base(), sr16=sr3())
    made("cat")
    assert capsys.readouterr().err == ""
    made.set_progress_bar_config(disable=False)
    made("cat")
    shown = capsys.readouterr().err
    assert "base: 100%" in shown and "sr16: 100%" in shown


def test_a_callback_knows_the_stage():
    made = cascade(base=base(), sr16=sr3())
    seen = []
    made("cat", callback_on_step_end=lambda pipe, step, timestep, values: seen.append((pipe.size, step)) or {})
    assert seen == [(8, 0), (8, 1), (8, 2), (16, 0), (16, 1)]


def test_wordnet_ids_name_classes():
    made = cascade(classes=Vocabulary(("cat", "dog", "fruit"), ("n01", "n02", "n03")), base=base())
    assert made(["n03", "Dog", 0], seeds=0).labels == [2, 1, 0]


def test_importing_the_face_imports_no_torch():
    code = (
        "import sys, cascade\n"
        "from cascade.classes import EMOJI\n"
        "from cascade.folder import Manifest\nfrom cascade.models import resolve\n"
        "assert not {'torch', 'diffusers', 'numpy'} & set(sys.modules), 'too much'\n"
        "assert set(cascade.__all__) <= set(dir(cascade))\n"
        "try:\n    cascade.Pipeline\n"
        "except AttributeError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "module 'cascade' has no attribute 'Pipeline'\n"


def test_mixed_precision_is_chosen_by_dtype_and_said_of_the_stages_that_run_so(tmp_path, monkeypatch):
    monkeypatch.setattr("cascade.stages.stage.multiplies_bfloat16", lambda: True)
    stages = {"base": base(), "sr16": sr3()}
    known = BasePipeline(**stages["base"].components, bfloat16_difference=0.5)
    CascadePipeline(stages | {"base": known}, CLASSES).save_pretrained(tmp_path / "model")
    for dtype, want in (
        (None, [True, False]),
        ("float32", [False, False]),
        ("mixed", [True, True]),
        ("bfloat16", [False, False]),
    ):
        made = CascadePipeline.from_pretrained(tmp_path / "model", dtype=dtype)
        said = made.described(["base", "sr16"])
        assert [said["stages"][name].get("mixed_precision", False) for name in ("base", "sr16")] == want, dtype
        assert said["dtype"] == (dtype if dtype == "bfloat16" else "float32")
