"""Export an encoder to another program, and compare the features of both on the same input.

python tools/export.py checkpoint=runs/demo to=safetensors out=encoder.safetensors
python tools/export.py checkpoint=runs/r3d50 to=slowfast out=sce_r3d50.pyth
python tools/export.py checkpoint=runs/r3d50 to=onnx out=encoder.onnx num_frames=8 size=224
"""

from sce_video.command_line import run_program
from sce_video.config.evaluate import ExportConfig
from sce_video.programs.export import export

if __name__ == "__main__":
    run_program("export", ExportConfig, export)
