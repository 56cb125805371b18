"""Imports point only up the list of modules, and networks need no data libraries."""

import ast
import collections
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[1]
ORDER = (  # a module may import those above it, never those below
    "errors", "display.command", "display.progress", "display.rows", "display.console",
    "display.interrupts", "display.loading", "display.output",
    "config", "config.schema", "config.options", "config.files", "config.flags",
    "devices.settings", "devices.compiled", "devices.processes", "devices.first",
    "devices.joining", "devices.mesh", "devices.starting", "devices.accelerators",
    "devices.collectives",
    "storage.paths", "storage.outputs", "storage.json_files",
    "storage.similar", "storage.lock", "storage.hub", "storage.integrity",
    "storage.quiet", "storage.checkpoints", "storage.networks",
    "storage.workdir",
    "weights.pickles", "weights.array_pickles",  # no other room's; sources read lists with them
    "data.labels", "data.names", "data.json_text", "data.palette", "data.class_ids",
    "data.class_advice", "data.classes_json",
    "data.formats", "data.files", "data.npy", "data.orientation", "data.images",
    "data.mask_files", "data.masks",
    "data.interpolation", "data.colour", "data.transforms",
    "data.scene_textures", "data.scene_street", "data.scene_rays", "data.scene_colours",
    "data.scenes", "data.scene_source", "data.scene_rig", "data.bev_source",
    "data.bev_transforms", "data.rig_files", "data.nuscenes_maps", "data.nuscenes_source",
    "data.folder_source", "data.named_sets",
    "data.depth_files", "data.depth_transforms", "data.depth_source", "data.depth_sets",
    "metrics.uncertainty", "data.few_label_sets", "data.generated_sets",
    "data.prepared", "data.tfds", "data.sources", "data.subsets",
    "data.pipeline", "data.label_checks", "data.fingerprint",
    "data.corruption_blurs", "data.corruption_weather", "data.corruption_frost",
    "data.corruptions",
    "diffusion.schedules", "diffusion.process", "diffusion.samplers", "diffusion.bounds",
    "diffusion.timesteps", "diffusion.label_codes",
    "layers.mlp", "layers.conv", "layers.depthwise", "layers.norm", "layers.conv_norm",
    "layers.bev_pooling", "layers.resize", "layers.dropout", "layers.embeddings",
    "layers.attention", "layers.vit_block", "layers.deformable", "layers.pieces",
    "models.network", "models.transunet", "models.swin", "models.convnext", "models.fpn",
    "models.map_decoder", "models.dense_network", "models.ddp_network", "models.depth_network",
    "models.camera_encoder", "models.bev_decoder", "models.bev_network", "models.adm_unet",
    "models.clean_unet", "models.pixel_mlp",
    "models.descriptor", "models.taps", "models.efficientnet_lite", "models.resnet",
    "models.deeplab",
    "models.mae", "models.dino", "models.encoder_maps",
    "weights.recognised", "weights.formats", "weights.tables",
    "weights.torch_rows",
    "weights.transunet", "weights.adm", "weights.backbones",
    "weights.ddp", "weights.ddp_depth", "weights.ddp_bev", "weights.pixel_mlp",
    "weights.batch_norms", "weights.efficientnet_lite", "weights.packaged",
    "weights.mae", "weights.resnet", "weights.deeplab", "weights.dino",
    "metrics.divergence", "metrics.segmentation",
    "metrics.calibration", "metrics.calibrator", "metrics.familiarity", "metrics.review",
    "metrics.choice", "metrics.image_counts", "metrics.class_sizes", "metrics.clusters",
    "metrics.bev",
    "metrics.depth",
    "training.depth_loss", "training.layer_loss",
    "training.losses", "training.state", "training.optimizer", "training.step", "training.log",
    "training.resources", "training.state_sizes", "training.operations", "training.signals",
    "training.lifecycle",
    "training.loop", "training.fit_loop", "training.trackers",
    "models.inputs", "sources.map_files", "sources.feature_source", "sources.colour",
    "sources.diffusion", "sources.clean", "sources.frozen", "sources.from_files",
    "sources.own_run",
    "systems.recipes", "systems.pixel_fit", "systems.task", "systems.system",
    "systems.pixel_ensemble", "systems.ddpm_sampling",
    "systems.ddep", "systems.dense_task", "systems.dense_images", "systems.ddp",
    "systems.ddp_segmentation", "systems.ddp_query", "systems.ddp_depth", "systems.ddp_bev",
    "systems.ddpm_seg", "systems.deeplab",
    "systems.mae", "systems.clean", "systems.ddp_config", "systems.feature_sources",
    "systems.source_files", "systems.few_labels", "systems.clean_config", "systems.mae_config",
    "systems.ddep_config", "systems.few_labels_config", "systems.ddpm_seg_config",
    "systems.deeplab_config", "systems.methods",
    "figures.colour_vision", "figures.layout", "figures.label_images", "figures.sheets",
    "figures.trust", "figures.confusion",
    "figures.curve_data", "figures.curves", "figures.robustness", "figures.depth",
    "figures.study_plots", "figures.cluster_plot", "figures.bev",
    "onnx_writer.graph", "onnx_writer.elementwise", "onnx_writer.arrays", "onnx_writer.products",
    "onnx_writer.random_numbers", "onnx_writer.convert", "onnx_writer.resizing",
    "onnx_writer.model_files",
    "inference.bands", "inference.views", "inference.depth_maps", "inference.forward",
    "inference.rig_forward", "inference.bev_maps",
    "inference.image_objects",
    "inference.videos", "inference.frames", "inference.images",
    "inference.calibrators", "inference.known_images", "inference.locate",
    "inference.options", "inference.georeference",
    "inference.output", "inference.exported_images", "inference.exported_rigs",
    "inference.contours", "inference.saved", "inference.show",
    "inference.summary", "inference.label_output", "inference.depth_output", "inference.rig_batch",
    "inference.bev_output",
    "inference.task_report", "inference.label_report", "inference.depth_report",
    "inference.bev_report", "inference.outputs",
    "inference.prediction", "inference.segmenter", "inference.batch", "inference.sampling",
    "inference.converted", "inference.converted_depth", "inference.converted_bev",
    "inference.converted_transunet",
    "inference.converted_deeplab",
    "inference.converted_ensemble",
    "inference.converted_source", "inference.feature_files",
    "inference.exported_onnx", "inference.exported", "inference.image_descriptors",
    "inference.suggestions", "inference.description", "inference.synthesis",
    "inference.description_text", "inference.model_card", "inference.sharing",
    "annotations.polygons", "annotations.photos", "annotations.regions", "annotations.entries",
    "annotations.painting", "annotations.mask_folder", "annotations.labelme",
    "annotations.plain_xml", "annotations.brush_rle",
    "annotations.class_tables", "annotations.colour_masks",
    "annotations.mask_pairs", "annotations.cvat", "annotations.label_studio", "annotations.voc",
    "annotations.colours", "annotations.black_white", "annotations.indexed",
    "annotations.cityscapes", "annotations.run_lengths", "annotations.coco",
    "annotations.coco_panoptic", "annotations.yolo", "annotations.predicted",
    "annotations.label_formats", "annotations.advice", "annotations.conversion",
    "experiment.data_notes", "experiment.evaluate", "experiment.calibrate",
    "experiment.augmentation", "experiment.target", "experiment.planned",
    "experiment.fold_files", "experiment.step_folds", "experiment.results",
    "experiment.label_target",
    "experiment.depth_checks", "experiment.depth_target", "experiment.bev_target",
    "experiment.targets",
    "experiment.start_step", "experiment.labelled_images", "experiment.crops", "experiment.plan",
    "experiment.time_budget", "experiment.monitor",
    "experiment.grid_note", "experiment.label_strokes", "experiment.fit_network",
    "experiment.fit_images", "experiment.fit_feature_files", "experiment.fit_features",
    "experiment.kept_features",
    "experiment.labelled_pixels",
    "experiment.ensemble_stage",
    "experiment.linear_probe",
    "experiment.pretraining_probe", "experiment.gradient_stage", "experiment.changed_data",
    "experiment.class_weights", "experiment.stroke_network",
    "experiment.stroke_features", "experiment.stroke_scores", "experiment.stroke_members",
    "experiment.stroke_fit",
    "experiment.stages", "experiment.more_labels", "experiment",
    "experiment.check_data",
    "experiment.blank", "experiment.stage_cost", "experiment.cost",
    "experiment.prepare_data", "experiment.cluster_maps",
    "experiment.tap_study", "experiment.steps_study", "experiment.prediction_cost",
    "experiment.corruption_report", "experiment.corruption_study",
    "experiment.child_run", "experiment.forest", "experiment.comparison",
    "experiment.comparison_report", "experiment.study_file", "experiment.study_cells",
    "experiment.study_claim", "experiment.study_progress", "experiment.study_scores",
    "experiment.study_runs", "experiment.study_report", "experiment.study_costs",
    "experiment.study_run",
    "server.security", "server.page_images", "server.page_classes", "server.map_png",
    "server.replaced_images", "server.label_store", "server.page_events",
    "server.fit_worker", "server.dataset_export", "server.page_app", "server.drawn_scenes",
    "server.listening", "server.page_address", "server.page_server", "server.notebook",
    "cli", "server.request_batches", "server.served_network", "server.predict_formats",
    "server.predict_query", "server.request_image", "server.predict_app", "server.predict_server",
    "old_names.command", "old_names.visualise", "old_names.checkpoints",
    "plot", "convert", "sample", "predict", "export", "info", "share", "features", "suggest",
    "compare", "synthesise", "study", "labels", "annotate", "serve", "main",
)  # fmt: skip


def modules():
    """Dotted name and file of every module of the package that holds code."""
    folder = ROOT / "diffseg_jax"
    for file in sorted(folder.rglob("*.py")):
        parts = file.relative_to(folder).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name and ast.parse(file.read_text()).body:
            yield name, file


def imported(file):
    """The modules of the package that a file imports."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("diffseg_jax"):
            base = node.module.removeprefix("diffseg_jax").lstrip(".")
            names = [f"{base}.{alias.name}".lstrip(".") for alias in node.names]
            yield from [name if name in ORDER else base for name in names]


def test_every_module_is_in_the_order():
    assert {name for name, _ in modules()} == set(ORDER)


def test_imports_point_up_the_list():
    for name, file in modules():
        for other in filter(None, imported(file)):
            assert ORDER.index(other) < ORDER.index(name), f"{name} imports {other}"


def test_feature_sources_know_no_method():
    for name, file in modules():
        if name.startswith("sources."):
            assert not [other for other in imported(file) if other.startswith("systems")], name


def test_networks_losses_and_steps_need_no_data_libraries():
    program = (
        "import sys, diffseg_jax, diffseg_jax.config\n"
        "assert diffseg_jax.UserError is diffseg_jax.config.UserError\n"
        "assert not {'jax', 'numpy', 'ml_collections'} & set(sys.modules)\n"
        "import diffseg_jax.annotations.label_formats, diffseg_jax.annotations.conversion\n"
        "assert 'jax' not in sys.modules\n"
        "for name in ('grain', 'tensorflow_datasets', 'ml_collections'): sys.modules[name] = None\n"
        "import diffseg_jax.systems.methods, diffseg_jax.training.step\n"
        "import diffseg_jax.inference.views, diffseg_jax.weights.adm\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_a_study_is_listed_without_jax():
    program = "import sys, diffseg_jax.study; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=120)


def test_the_root_holds_what_a_user_types():
    files = list((ROOT / "diffseg_jax").glob("*.py"))
    assert len(files) <= 19  # as many as there are commands, and cli.py
    assert sum(lines_of(file) for file in files) <= 1900


def test_a_name_means_one_thing():
    """Methods provide the same functions, and commands make their flags; others share few names."""
    files = collections.defaultdict(set)
    for name, file in modules():
        if not name.startswith(("systems.", "old_names.")):
            for defined in defined_in(file) - {"main", "make_flags"}:
                files[defined].add(name)
    shared = {defined: names for defined, names in files.items() if len(names) > 1}
    assert len(shared) <= 3, shared


def defined_in(file):
    """The public names that a file defines at module level."""
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize(
    ("starts", "most"),
    [
        (("systems.ddep", "training.step"), 2217),
        (("systems.ddp_segmentation", "training.step"), 4080),
        (("systems.ddp_depth", "training.step"), 3030),
        (("systems.ddpm_seg", "training.step"), 3600),
        (("training.loop",), 2530),  # with 580 of the display
    ],
    ids=["ddep", "ddp", "ddp_depth", "ddpm_seg", "loop"],
)
def test_a_loss_and_the_loop_need_few_modules(starts, most):
    """Lines of all modules that they import, directly or not; readers of weights are not there."""
    files, reached, waiting = dict(modules()), set(), list(starts)
    while waiting:
        name = waiting.pop()
        if name in files and name not in reached:
            reached.add(name)
            waiting += imported(files[name])
    assert sum(lines_of(files[name]) for name in reached) <= most
    assert not any(name.startswith("weights.") for name in reached)


def lines_of(file):
    """The number of lines of a file."""
    return file.read_text().count("\n")
