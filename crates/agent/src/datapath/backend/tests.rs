use super::*;

/// A kernel so large that a look at it ends only when it is given up, or must not be.
struct Slow {
    looks: Arc<Mutex<u32>>,
}

impl KernelPart for Slow {
    fn take(&mut self, _: Pieces) {}

    fn update(&mut self) -> Option<Result<()>> {
        Some(Ok(()))
    }

    fn is_untouched(&mut self) -> Result<bool> {
        Ok(false)
    }

    fn differ(&mut self, go_on: &dyn Fn() -> bool) -> Result<Option<Steps>> {
        self.converge(go_on)
    }

    fn converge(&mut self, go_on: &dyn Fn() -> bool) -> Result<Option<Steps>> {
        let mut looks = self.looks.lock().unwrap();
        *looks += 1;
        let must_end = *looks > GIVEN_UP;
        loop {
            if must_end || !go_on() {
                return Ok(must_end.then(Steps::default));
            }
        }
    }

    fn guarded(&mut self) -> Result<Guarded> {
        Ok(Guarded::Whole)
    }

    fn begin(&mut self, _: Pieces) -> Result<()> {
        Ok(())
    }

    fn clear(&mut self) -> Result<Steps> {
        Ok(Steps::default())
    }
}

/// What is ordered during a look is done first, and the look comes to its end all the same.
#[test]
fn a_look_is_given_up_for_what_comes_meanwhile_and_ends_all_the_same() {
    let (orders, queue) = mpsc::channel();
    let (sender, answers) = mpsc::channel();
    let looks = Arc::default();
    let part = Box::new(Slow { looks: Arc::clone(&looks) });
    let thread = std::thread::spawn(move || Hand { part, unsure: false }.work(&queue, &sender, &|| ()));
    let look = || orders.send(Order::Look { why: Look::Mend, given_up: 0 }).unwrap();
    let follow = || orders.send(Order::Follow { pieces: None, whole: true }).unwrap();
    look();
    for _ in 0..GIVEN_UP {
        follow();
        let Answer::Followed(followed) = answers.recv().unwrap() else { panic!("it looked first") };
        assert!(followed.taken && followed.compared.is_none());
    }
    let Answer::Looked(looked) = answers.recv().unwrap() else { panic!("nobody asked") };
    assert!(looked.was_needed && looked.done.is_ok());
    assert_eq!(*looks.lock().unwrap(), GIVEN_UP + 1);
    drop(orders);
    thread.join().unwrap();
}
