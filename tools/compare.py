"""Compare methods, or values of options: pretrain and evaluate each with several seeds, end in a table and a plot.

python tools/compare.py 'methods=[sce,moco,byol]' seeds=3                       # on the demo's videos
python tools/compare.py 'sce.coeff=[0,.25,.5,.75,1]' seeds=3 out=runs/coeff     # any option of tools/pretrain.py
python tools/compare.py 'methods=[sce,moco]' recipe=sce_r3d18_ucf101 data.train=u/train1.csv train=u/train1.csv test=u/test1.csv
python tools/compare.py 'methods=[sce,byol]' seeds=3 'slurm=gpus=1 time=4:00:00' ...   # submit each run; again without: table

methods=    method= of each row; any other option given as a list in brackets makes rows of its values
seeds=1     runs per row, with seed=0, 1, ...
data=demo   the demo's recipe and built-in videos; otherwise give recipe=, data.train= and the lists to score
train= test=   labelled lists of the evaluation (synthetic with the demo; without lists there is no evaluation)
out=        folder of all runs and of table.md, table.csv and plot.png (default: runs/compare)
slurm=      options of tools/launch.py slurm; table=true only writes the table of what is there

The same command continues where it was stopped. evaluate.X= is option X of tools/evaluate.py, others of
tools/pretrain.py.
"""

import sys

from compare.program import main

if __name__ == "__main__":
    main(sys.argv[1:], __doc__)
