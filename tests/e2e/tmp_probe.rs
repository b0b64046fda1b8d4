use orlop_tests::*;
use std::time::*;
#[test]
fn probe() {
    for _ in 0..5 {
        let t = Testbed::new().unwrap();
        let (a, b) = (t.node("a").unwrap(), t.node("b").unwrap());
        let x = a.pod("s", "x", PodSpec::new()).unwrap();
        let y = b.pod("s", "y", PodSpec::new()).unwrap();
        let s = y.serve_echo(7).unwrap();
        let start = Instant::now();
        b.connect(s.addr(), Duration::from_secs(5)).unwrap();
        let node = start.elapsed();
        let start = Instant::now();
        a.connect(s.addr(), Duration::from_secs(5)).unwrap();
        let wire = start.elapsed();
        let start = Instant::now();
        x.connect(s.addr(), Duration::from_secs(5)).unwrap();
        println!("local {node:?} wire {wire:?} pod {:?}", start.elapsed());
        let start = Instant::now();
        b.connect(s.addr6(), Duration::from_secs(5)).unwrap();
        let node = start.elapsed();
        let start = Instant::now();
        x.connect(s.addr6(), Duration::from_secs(5)).unwrap();
        println!("v6 local {node:?} pod {:?}", start.elapsed());
    }
}
