#!/bin/sh
# machine.sh HOME NAME: a machine of its own for a container runtime and a kubelet, but for its network and its kernel.
# It has its own processes, mounts and cgroups, runs HOME/start, and ends with the process that it was started as.
#
# Its cgroups, called NAME, are below this process's own in every hierarchy, and look from inside as if there were no
# others.
set -eu
if [ "${3-}" = inside ]; then
    # What is mounted from now on is seen inside alone, and by the containers that ask for it.
    mount --make-rshared /
    hierarchies=$(awk '$3 == "cgroup" || $3 == "cgroup2" {print $3 ":" $2}' /proc/mounts)
    for hierarchy in $hierarchies; do
        place=${hierarchy#*:}
        umount "$place"
        case $hierarchy in
        cgroup2:*) mount -t cgroup2 none "$place" ;;
        */systemd) mount -t cgroup -o none,name=systemd none "$place" ;;
        *) mount -t cgroup -o "${place##*/}" none "$place" ;;
        esac
    done
    mount -t bpf none /sys/fs/bpf
    for place in etc/cni etc/kubernetes/manifests etc/systemd/system run/containerd run/netns run/orlop var/lib/cni \
        var/lib/containerd var/lib/kubelet var/lib/orlop var/log/containers var/log/pods; do
        mkdir -p "$1/$place" "/$place"
        mount --bind "$1/$place" "/$place"
    done
    . "$1/start"
    # Process 1 waits for those that have lost their parents.
    while :; do
        sleep 3600 &
        wait $! || :
    done
fi
while IFS=: read -r _ controllers path; do
    case $controllers in
    "") place=$(awk '$3 == "cgroup2" {print $2; exit}' /proc/mounts) ;;
    name=*) place=/sys/fs/cgroup/${controllers#name=} ;;
    *) place=/sys/fs/cgroup/$controllers ;;
    esac
    above=$place${path%/}
    case $above in
    # Of version 2 it is there already.
    */"$2") continue ;;
    esac
    mkdir -p "$above/$2"
    if [ "$controllers" = cpuset ]; then
        cat "$above/cpuset.cpus" >"$above/$2/cpuset.cpus"
        cat "$above/cpuset.mems" >"$above/$2/cpuset.mems"
    fi
    echo $$ >"$above/$2/cgroup.procs"
done </proc/self/cgroup
exec unshare --mount --propagation private --cgroup --pid --fork --kill-child --mount-proc sh "$0" "$1" "$2" inside
