import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.LongAdder;
import java.util.concurrent.locks.LockSupport;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.springframework.context.annotation.AnnotationConfigApplicationContext;
import org.springframework.context.annotation.Bean;
import org.springframework.context.annotation.Configuration;
import org.springframework.kafka.annotation.EnableKafka;
import org.springframework.kafka.annotation.KafkaListener;
import org.springframework.kafka.config.ConcurrentKafkaListenerContainerFactory;
import org.springframework.kafka.core.DefaultKafkaConsumerFactory;
import org.springframework.kafka.support.serializer.ErrorHandlingDeserializer;
import org.springframework.kafka.support.serializer.JacksonJsonDeserializer;

/**
 * Peer BROKERS TOPIC RECORDS WAIT_MICROS CONCURRENCY ROUNDS: a service as Spring's users write it, an annotated method that takes the event, with a thread a partition and
 * the defaults otherwise.
 */
public class Peer {
    static String brokers, topic, group;
    static int threads;
    static Round round;

    public record Line(String sku, int qty, long price_cents) {}

    /** What the others read of an event too; fields beyond are left out. */
    public record Order(String order_id, long seq, String customer, long total_cents, String currency, List<Line> lines) {}

    /** From the first record that is handled to the last. */
    static class Round {
        final AtomicLong began = new AtomicLong();
        final LongAdder handled = new LongAdder();
    }

    @Configuration
    @EnableKafka
    public static class Service {
        static long wait;

        @Bean
        ConcurrentKafkaListenerContainerFactory<String, Order> kafkaListenerContainerFactory() {
            Map<String, Object> settings = Map.of("bootstrap.servers", brokers, "group.id", group, "auto.offset.reset", "earliest");
            var factory = new ConcurrentKafkaListenerContainerFactory<String, Order>();
            factory.setConsumerFactory(new DefaultKafkaConsumerFactory<>(
                settings,
                StringDeserializer::new,
                () -> new ErrorHandlingDeserializer<>(new JacksonJsonDeserializer<>(Order.class, false))));
            factory.setConcurrency(threads);
            return factory;
        }

        @Bean
        Listener listener() {
            return new Listener();
        }
    }

    public static class Listener {
        @KafkaListener(topics = "#{__listener.topic}")
        public void on(Order order) {
            if (round.began.get() == 0) round.began.compareAndSet(0, System.nanoTime());
            if (order.seq() < 0) throw new IllegalStateException();
            long wait = Service.wait;
            for (long until = System.nanoTime() + wait; wait > 0 && System.nanoTime() < until; ) LockSupport.parkNanos(until - System.nanoTime());
            round.handled.increment();
        }

        public String getTopic() {
            return topic;
        }
    }

    public static void main(String[] arguments) throws Exception {
        brokers = arguments[0];
        topic = arguments[1];
        long records = Long.parseLong(arguments[2]);
        Service.wait = Long.parseLong(arguments[3]) * 1_000;
        // More threads than partitions have nothing to do.
        threads = Math.min(8, Integer.parseInt(arguments[4]));
        for (int n = 0; n < Integer.parseInt(arguments[5]); n++) {
            group = "peer-" + UUID.randomUUID();
            round = new Round();
            try (var context = new AnnotationConfigApplicationContext(Service.class)) {
                while (round.handled.sum() < records) Thread.sleep(1);
                System.out.println("seconds " + (System.nanoTime() - round.began.get()) / 1e9);
            }
        }
        System.out.println("done");
        // Until it is ended, so that its cost can be read.
        Thread.sleep(Long.MAX_VALUE);
    }
}
