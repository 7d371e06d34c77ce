# Ranks as shell scripts of model repositories start them: in the background, the first through tee. Arguments: the script
# of a rank, a free port, a folder for the log of each.
devices=$(python3 -c "import torch, torch_npu; print(torch_npu.npu.device_count())")
[ "$devices" = 16 ] || exit 3
export MASTER_ADDR=127.0.0.1 MASTER_PORT=$2 WORLD_SIZE=2
for ((i = 0; i < 2; i++)); do
    export RANK=$i LOCAL_RANK=$i
    if [ $i -eq 0 ]; then
        taskset -c 0 python3 "$1" 2>&1 | tee "$3/$i.log" &
    else
        python "$1" &> "$3/$i.log" &
    fi
done
wait
